"""The published row a run is measured against."""

import dataclasses

from ml_collections import ConfigDict

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
    """Accuracies in percent by attack, at L-inf `epsilon` in [0, 1] pixels.

    `strength` is m of Free-m and K of K-PGD, 0 elsewhere; `minutes` on the hardware of
    the source, None where it does not say.
    """

    source: str
    data: str
    method: str
    strength: int
    model: str
    updates: int
    accuracy: dict[str, float]
    minutes: float | None
    epsilon: float = 8 / 255

    def same_recipe(self, config: ConfigDict) -> bool:
        """Whether a run had this network, budget and start of delta too."""
        return (self.model, self.updates, "carried") == (
            config.model.name,
            config.updates,
            config.attack.start,
        )


def published_row(config: ConfigDict) -> Published | None:
    """The row of a run's data set, method and threat, of its network if there is one."""
    attack = config.attack
    strength = {"free": attack.replays, "pgd": attack.steps}
    of_run = (config.data.name, config.method, strength.get(config.method, 0))
    rows = [
        row
        for row in ROWS
        if (row.data, row.method, row.strength) == of_run
        and attack.norm == "linf"
        and abs(attack.epsilon - row.epsilon) < 1e-6
    ]
    return min(rows, key=lambda row: row.model != config.model.name, default=None)


def _wide(source, data, method, strength, figures, minutes):
    accuracy = dict(zip(_ATTACKS, figures))
    return Published(source, data, method, strength, *_WRN, accuracy, minutes)


def _fast(method, strength, updates, natural, robust):
    accuracy = {"natural": natural, "pgd-50-x10": robust}
    return Published(
        _RERUN, "cifar10", method, strength, _RESNET, updates, accuracy, None
    )


def _imagenet(model, figures):
    return Published(
        source=_SLIDES,
        data="imagenet",
        method="free",
        strength=4,
        model=model,
        updates=23 * 5004 * 4,
        accuracy=dict(zip(_IMAGENET_ATTACKS, figures, strict=True)),
        minutes=None,
        epsilon=4 / 255,
    )


ROWS = (
    _wide(_TABLE_1, "cifar10", "natural", 0, (95.01, 0.00, 0.00, 0.00, 0.00), 780),
    _wide(_TABLE_1, "cifar10", "free", 2, (91.45, 33.92, 33.20, 34.57, 33.41), 816),
    _wide(_TABLE_1, "cifar10", "free", 4, (87.83, 41.15, 40.35, 41.96, 40.73), 800),
    _wide(_TABLE_1, "cifar10", "free", 8, (85.96, 46.82, 46.19, 46.60, 46.33), 785),
    _wide(_TABLE_1, "cifar10", "free", 10, (83.94, 46.31, 45.79, 45.86, 45.94), 785),
    _wide(_TABLE_1, "cifar10", "pgd", 7, (87.25, 45.84, 45.29, 46.52, 45.53), 5418),
    _wide(_README, "cifar100", "natural", 0, (78.84, 0, 0), 811),
    _wide(_README, "cifar100", "free", 2, (69.20, 15.37, 14.86), 816),
    _wide(_README, "cifar100", "free", 4, (65.28, 20.64, 20.15), 767),
    _wide(_README, "cifar100", "free", 8, (62.13, 25.88, 25.58), 780),
    _wide(_README, "cifar100", "free", 10, (59.27, 25.15, 24.88), 776),
    _wide(_README, "cifar100", "pgd", 2, (67.94, 17.08, 16.50), 2053),
    _wide(_README, "cifar100", "pgd", 7, (59.87, 22.76, 22.52), 5157),
    _fast("fgsm-rs", 0, 15 * 390, 79.30, 45.31),
    _fast("free", 8, 10 * 390 * 8, 76.95, 45.98),
    _fast("pgd", 7, 15 * 390, 76.64, 47.25),
    Published(
        source=_TRADES,
        data="cifar10",
        method="trades",
        strength=0,
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
