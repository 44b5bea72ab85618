"""The sandwich: certified <= robust <= attacked, for each image.

An attack shows that an image can be broken, and a certificate that it cannot. An image that
is both reveals a fault, and one that is neither is open.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool

from freeadv_jax.attacks.red_flags import Flag

SANDWICH = "sandwich"
# The images that a text names; the record has all of them.
_NAMED_IMAGES = 5
_ADVICE = (
    "a certificate and an attack contradict each other: one of them is wrong for this model, "
    "please report it"
)

# By the name of an attack or a certificate, bool[n]: the images that it leaves or certifies.
Outcomes = Mapping[str, np.ndarray]


def sandwich(
    *,
    natural: Bool[np.ndarray, " n"],
    robust: Outcomes,
    certified: Outcomes,
    norm: str,
    epsilon: float,
) -> dict:
    """Return what attacks and certificates with one norm and epsilon say together.

    `natural` are the images classified correctly as they are. Arrays may have different
    numbers of images, always the first ones: the record is about those that all have. It
    is {norm, epsilon, examples, certificates, attacks, certified, open, broken, violations,
    suspicious, text}: the names, the numbers of images that some certificate certifies, that
    some attack breaks and that are neither, and each image that is both.
    """
    broken_by = {"natural": ~natural} | {name: ~left for name, left in robust.items()}
    arrays = [*broken_by.values(), *certified.values()]
    examples = min(map(len, arrays))
    broken = np.logical_or.reduce([each[:examples] for each in broken_by.values()])
    sure = np.logical_or.reduce([each[:examples] for each in certified.values()])
    violations = [
        {
            "image": int(image),
            "certificates": _names(certified, image),
            "attacks": _names(broken_by, image),
        }
        for image in np.flatnonzero(broken & sure)
    ]
    counts = {
        "certified": int(sure.sum()),
        "open": int((~sure & ~broken).sum()),
        "broken": int(broken.sum()),
    }
    return {
        "norm": norm,
        "epsilon": epsilon,
        "examples": examples,
        "certificates": list(certified),
        "attacks": list(robust),
        **counts,
        "violations": violations,
        "suspicious": bool(violations),
        "text": _text(examples, counts, violations),
    }


def sandwiches(
    rows: Mapping[str, dict],
    robust: Outcomes,
    certified_rows: Mapping[str, dict],
    certified: Outcomes,
    *,
    natural: Bool[np.ndarray, " n"],
) -> dict[str, dict]:
    """Return a sandwich for each norm and epsilon that has a certificate.

    `rows` have the settings of attacks under 'attack', `certified_rows` those of
    certificates under 'certificate'. The name is 'sandwich', with the suffix behind an @ that
    its rows have.
    """
    threats: dict[tuple, list[str]] = {}
    for name, row in certified_rows.items():
        threats.setdefault(_threat(name, row["certificate"]), []).append(name)
    found = {}
    for threat, names in threats.items():
        suffix, norm, epsilon = threat
        attacks = {
            name: robust[name]
            for name, row in rows.items()
            if name in robust and "attacks" not in row["attack"]
            if _threat(name, row["attack"]) == threat
        }
        found[f"{SANDWICH}@{suffix}" if suffix else SANDWICH] = sandwich(
            natural=natural,
            robust=attacks,
            certified={name: certified[name] for name in names},
            norm=norm,
            epsilon=epsilon,
        )
    return found


def sandwich_flags(records: Iterable[dict]) -> list[Flag]:
    """Return a raised flag for each sandwich with an image that is certified and broken."""
    return [
        Flag(
            SANDWICH,
            True,
            record["text"],
            {"violations": record["violations"]},
            _ADVICE,
        )
        for record in records
        if record["suspicious"]
    ]


def _threat(name, made):
    return name.partition("@")[2], made["norm"], made["epsilon"]


def _names(outcomes, image):
    return [name for name, marked in outcomes.items() if marked[image]]


def _text(examples, counts, violations):
    text = f"of {examples} images " + ", ".join(
        f"{count} {kind}" for kind, count in counts.items()
    )
    named = [
        f"image {each['image']} is certified by {' and '.join(each['certificates'])} and "
        f"broken by {' and '.join(each['attacks'])}"
        for each in violations[:_NAMED_IMAGES]
    ]
    if len(violations) > _NAMED_IMAGES:
        named.append(f"so are {len(violations) - _NAMED_IMAGES} more images")
    return "; ".join([text, *named])
