"""Wide ResNets of Gowal et al. (2020) in Haiku: peers written for the tests."""

import haiku as hk
import jax
import jax.numpy as jnp


def _norm(name):
    return hk.BatchNorm(True, True, 0.99, name=name)


def _conv(features, size, stride, name):
    return hk.Conv2D(features, size, stride=stride, with_bias=False, name=name)


class Block(hk.Module):
    """Add two convolutions of active images to them, or to a 1x1 convolution of them."""

    def __init__(self, features, stride, first, name):
        super().__init__(name=name)
        self.norms = [_norm(f"batchnorm_{index}") for index in range(2)]
        self.convs = [
            _conv(features, 3, (stride, 1)[index], f"conv_{index}")
            for index in range(2)
        ]
        self.shortcut = _conv(features, 1, stride, "shortcut") if first else None

    def __call__(self, images, train):
        active = jax.nn.swish(self.norms[0](images, is_training=train))
        past = self.shortcut(active) if self.shortcut else images
        hidden = self.convs[0](active)
        hidden = jax.nn.swish(self.norms[1](hidden, is_training=train))
        return self.convs[1](hidden) + past


class WideResNet(hk.Module):
    """Apply a stem, three stages of blocks, BatchNorm, swish, mean and a dense layer."""

    def __init__(self, depth, width, num_classes):
        super().__init__()
        self.stem = _conv(16, 3, 1, "init_conv")
        self.norm = _norm("batchnorm")
        self.head = hk.Linear(num_classes, name="logits")
        self.blocks = [
            Block(
                16 * width * 2**stage,
                2 if stage and not unit else 1,
                not unit,
                f"resnet_lay_{stage}_block_{unit}",
            )
            for stage in range(3)
            for unit in range((depth - 4) // 6)
        ]

    def __call__(self, images, train):
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden, train)
        hidden = jax.nn.swish(self.norm(hidden, is_training=train))
        return self.head(jnp.mean(hidden, axis=(1, 2)))


def wide_resnet(depth, width, num_classes):
    """Return init(key, images, train) and apply(parameters, state, images, train)."""

    def forward(images, train):
        return WideResNet(depth, width, num_classes)(images, train)

    return hk.without_apply_rng(hk.transform_with_state(forward))
