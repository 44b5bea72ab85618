"""LID detector: Ma et al. (ICLR 2018); it masks nothing, and rejects what looks attacked.

The local intrinsic dimension of an image's activations among those of natural images tells
natural images from those attacked in the usual way. Athalye et al. (ICML 2018) attacked the
classifier until it was very sure: 5 % are left. Here the attack also minds the detector.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.pgd import pgd
from freeadv_jax.gallery.defence import Defence, Defended, by_pgd
from freeadv_jax.models.conv import Conv

NEIGHBOURS, REFERENCES, TRAINED_ON = 20, 100, 200
# The weights of the detector's score beside the margin, each an attack of its own.
_WEIGHTS = (0.3, 3.0)
_LEAD, _STEPS = 3.0, 60


def local_intrinsic_dimension(
    points: Float[Array, "b n"], references: Float[Array, "m n"], neighbours: int
) -> Float[Array, " b"]:
    """Return the maximum likelihood estimate of the local intrinsic dimension.

    With r_1 <= ... <= r_k the distances to the nearest of the references it is
    -1 / mean(log(r_i / r_k)) (Amsaleg et al., KDD 2015). A reference equal to the point is
    left out.
    """
    squares = jnp.sum(points**2, axis=-1)[:, None] + jnp.sum(references**2, axis=-1)
    squares = jnp.maximum(squares - 2 * points @ references.T, 0)
    squares = jnp.where(squares > 1e-6, squares, jnp.inf)
    nearest = -jax.lax.top_k(-squares, neighbours)[0]
    logs = 0.5 * jnp.log(nearest / nearest[:, -1:])
    return -1 / jnp.minimum(jnp.mean(logs, axis=-1), -1e-6)


def activations(model: nn.Module, variables, images: Float[Array, "b h w c"]):
    """Return what each convolution and dense layer of a module gives, [b, units] each."""
    found = []

    def keep(run, arguments, keywords, context):
        units = run(*arguments, **keywords)
        layer = isinstance(context.module, Conv | nn.Conv | nn.Dense)
        if layer and context.method_name == "__call__":
            found.append(units.reshape(len(units), -1))
        return units

    with nn.intercept_methods(keep):
        model.apply(variables, images, train=False)
    return found


def _build(task):
    from sklearn.linear_model import LogisticRegression

    model, variables = task.network(), task.natural.variables
    logits_fn, threat_size = task.natural.logits_fn, task.recipe.epsilon
    chosen = task.train.take(np.arange(REFERENCES + TRAINED_ON))
    images = chosen.images.astype(np.float32) / np.float32(255)
    references = activations(model, variables, jnp.asarray(images[:REFERENCES]))

    def dimensions(images):
        layers = activations(model, variables, images)
        return jnp.stack(
            [
                local_intrinsic_dimension(*pair, NEIGHBOURS)
                for pair in zip(layers, references, strict=True)
            ],
            axis=-1,
        )

    # Natural and noisy images against attacked ones, as in the paper.
    natural, labels = images[REFERENCES:], chosen.labels[REFERENCES:]
    attacked = pgd(
        logits_fn,
        natural,
        labels,
        epsilon=threat_size,
        last_iterate=True,
        seed=task.seed,
    )
    random = np.random.default_rng(task.seed).choice([-1, 1], natural.shape)
    noisy = np.clip(natural + threat_size * random, 0, 1).astype(np.float32)
    measured = jax.jit(dimensions)
    features = np.concatenate([measured(x) for x in (natural, noisy, attacked.images)])
    middle, scale = features.mean(axis=0), features.std(axis=0)
    is_attacked = np.repeat([0, 0, 1], len(natural))
    line = LogisticRegression(class_weight="balanced").fit(
        (features - middle) / scale, is_attacked
    )
    weights = jnp.asarray(line.coef_[0], jnp.float32)
    offset = jnp.float32(line.intercept_[0])

    def score(images):
        """Return the log odds that images are attacked."""
        return (dimensions(images) - middle) / scale @ weights + offset

    def minding(weight):
        def attack(images, labels, threat, seed):
            del seed  # It begins at the images.

            def objective(points):
                lead, suspected = margin(logits_fn(points), labels), score(points)
                gain = jnp.minimum(lead, _LEAD)
                gain -= weight * jax.nn.relu(suspected + 0.5)
                return gain.sum(), (lead > 0) & (suspected < 0)

            def step(_, carried):
                point, found, best = carried
                slope, success = jax.grad(objective, has_aux=True)(point)
                # The first point that is wrong and let through stays.
                new = success & ~found
                best = jnp.where(new[:, None, None, None], point, best)
                point = threat.climb(images, point, slope, threat.epsilon / 10)
                return point, found | new, best

            def ascend(images):
                begun = images, jnp.zeros(len(images), bool), images
                point, found, best = jax.lax.fori_loop(0, _STEPS, step, begun)
                return jnp.where(found[:, None, None, None], best, point)

            return jax.jit(ascend)(jnp.asarray(images))

        return attack

    adaptive = {"PGD until it is sure": by_pgd(logits_fn, loss="margin")}
    adaptive |= {
        f"PGD on classifier and detector, weight {weight:g}": minding(weight)
        for weight in _WEIGHTS
    }
    return Defended(
        logits_fn, adaptive, rejects=jax.jit(lambda images: score(images) > 0)
    )


DEFENCE = Defence(
    name="lid",
    title="LID detector",
    paper="Ma et al., ICLR 2018",
    kind="a detector",
    parameters=f"{NEIGHBOURS} neighbours among {REFERENCES}",
    broken_by="PGD that minds the detector",
    masks=False,
    published=0.05,
    build=_build,
)
