"""Published accuracies, and the row that belongs to a run."""

import dataclasses

from ml_collections import ConfigDict

from freeadv_jax.training.methods import METHODS

_ATTACKS = ("natural", "pgd-20", "pgd-100", "cw-100", "pgd-20-x10")
_IMAGENET_ATTACKS = ("natural", "pgd-10", "pgd-50", "pgd-100")
_TABLE_1 = "Shafahi et al. 2019, Table 1"
_SLIDES = "Shafahi et al. 2019, the authors' slides"
_README = "Shafahi et al., README of free_adv_train"
_TRADES = "Zhang et al. 2019, README of yaodongyu/TRADES"
_RERUN = "a rerun of Wong et al. 2020, locuslab/fast_adversarial issue 8"
_WRN = ("wrn-32-10-madry", 80_000)
_RESNET = "preact-resnet-18"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published row: accuracies in percent by attack, at L-inf `epsilon`.

    `method` is the method's title, such as Free-8. `epsilon` is in [0, 1] pixels.
    `minutes` were measured on the hardware of the source; they are None where it does
    not say.
    """

    source: str
    data: str
    method: str
    model: str
    updates: int
    accuracy: dict[str, float]
    minutes: float | None
    epsilon: float = 8 / 255

    def same_recipe(self, config: ConfigDict) -> bool:
        """Return whether a run shares the network, the updates and the start of delta."""
        return (self.model, self.updates, "carried") == (
            config.model.name,
            config.updates,
            config.attack.start,
        )


def published_row(config: ConfigDict) -> Published | None:
    """Return the published row of a run's data set, method and threat.

    Among several rows the one of the run's network comes first. Return None where
    nobody published such a row.
    """
    attack = config.attack
    method = METHODS[config.method].title(attack)
    rows = [
        row
        for row in ROWS
        if (row.data, row.method) == (config.data.name, method)
        and attack.norm == "linf"
        and abs(attack.epsilon - row.epsilon) < 1e-6
    ]
    return min(rows, key=lambda row: row.model != config.model.name, default=None)


def _wide(source, data, method, figures, minutes):
    # The sources for CIFAR-100 report the first three attacks only.
    accuracy = dict(zip(_ATTACKS, figures))
    return Published(source, data, method, *_WRN, accuracy, minutes)


def _fast(method, updates, natural, robust):
    accuracy = {"natural": natural, "pgd-50-x10": robust}
    return Published(_RERUN, "cifar10", method, _RESNET, updates, accuracy, None)


def _imagenet(model, figures):
    return Published(
        source=_SLIDES,
        data="imagenet",
        method="Free-4",
        model=model,
        updates=23 * 5004 * 4,
        accuracy=dict(zip(_IMAGENET_ATTACKS, figures, strict=True)),
        minutes=None,
        epsilon=4 / 255,
    )


ROWS = (
    _wide(_TABLE_1, "cifar10", "Natural", (95.01, 0.00, 0.00, 0.00, 0.00), 780),
    _wide(_TABLE_1, "cifar10", "Free-2", (91.45, 33.92, 33.20, 34.57, 33.41), 816),
    _wide(_TABLE_1, "cifar10", "Free-4", (87.83, 41.15, 40.35, 41.96, 40.73), 800),
    _wide(_TABLE_1, "cifar10", "Free-8", (85.96, 46.82, 46.19, 46.60, 46.33), 785),
    _wide(_TABLE_1, "cifar10", "Free-10", (83.94, 46.31, 45.79, 45.86, 45.94), 785),
    _wide(_TABLE_1, "cifar10", "7-PGD", (87.25, 45.84, 45.29, 46.52, 45.53), 5418),
    _wide(_README, "cifar100", "Natural", (78.84, 0, 0), 811),
    _wide(_README, "cifar100", "Free-2", (69.20, 15.37, 14.86), 816),
    _wide(_README, "cifar100", "Free-4", (65.28, 20.64, 20.15), 767),
    _wide(_README, "cifar100", "Free-8", (62.13, 25.88, 25.58), 780),
    _wide(_README, "cifar100", "Free-10", (59.27, 25.15, 24.88), 776),
    _wide(_README, "cifar100", "2-PGD", (67.94, 17.08, 16.50), 2053),
    _wide(_README, "cifar100", "7-PGD", (59.87, 22.76, 22.52), 5157),
    _fast("FGSM-RS", 15 * 390, 79.30, 45.31),
    _fast("Free-8", 10 * 390 * 8, 76.95, 45.98),
    _fast("7-PGD", 15 * 390, 76.64, 47.25),
    Published(
        source=_TRADES,
        data="cifar10",
        method="TRADES",
        model="wrn-34-10",
        updates=76 * 390,
        accuracy={"natural": 84.92, "pgd-20": 56.61},
        minutes=None,
        epsilon=0.031,
    ),
    _imagenet("resnet-50", (60.206, 32.768, 31.878, 31.816)),
    _imagenet("resnet-101", (63.340, 35.388, 34.402, 34.328)),
    _imagenet("resnet-152", (64.446, 36.992, 36.044, 35.994)),
)
