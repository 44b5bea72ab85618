"""Write the figures and tables of the README and of docs/.

    python -m benchmarks.readme

replaces the text between `<!-- NAME -->` and `<!-- end -->`, for each NAME of BLOCKS. Figures
come from the records in benchmarks/results, the tables of fields and methods from the package.
"""

import inspect
import itertools
import pathlib
import re
import statistics
from functools import partial

from benchmarks.ablation import BASE, summary
from benchmarks.accelerators import NARROW, ONE_VECTOR
from benchmarks.contender import usual_images
from benchmarks.corruptions import GROUPS
from benchmarks.fine_tuning import ATTACKS as FINE_TUNING_ATTACKS
from benchmarks.quick import with_audit
from benchmarks.reproduce import ATTACKS, TABLES
from benchmarks.step_changes import (
    AS_IT_IS,
    GATHERED,
    KEPT,
    NO_PRODUCTS,
    POOLED,
    THREE_AXES,
)
from benchmarks.step_cost import ONE_A_CALL
from benchmarks.training import compilation, memory
from freeadv_jax.attacks.robustness import WORST_CASE, epsilon_text
from freeadv_jax.attacks.threat import THREATS
from freeadv_jax.command import Parser, run_command
from freeadv_jax.config import FIELDS, base_config
from freeadv_jax.files import read_json
from freeadv_jax.gallery.defences import DEFENCES
from freeadv_jax.training.methods import METHODS

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"<!-- (\w+) -->.*?<!-- end -->", re.DOTALL)
# The records of benchmarks.training, by block.
TRAINING = {
    "training_avx2": (
        "training_avx2",
        "training_avx2_wrn_32_10",
        "training_avx2_resnet_50",
        "training_avx2_small",
    ),
    "training_avx512": (
        "training_avx512",
        "training_avx512_128",
        "training_avx512_wrn_32_10",
        "training_avx512_resnet_50",
        "training_avx512_bfloat16",
        "training_avx512_bfloat16_wrn_32_10",
        "training_avx512_bfloat16_resnet_50",
        "training_avx512_small",
        "training_avx512_small_cnn",
        "training_avx512_small_cnn_mnist",
    ),
}
# With XLA's convolutions, at an earlier commit.
REFERENCE_STYLE = "training_avx512_xla"
# The records of benchmarks.convolutions, benchmarks.profile and benchmarks.step_changes.
BY_ONEDNN = (
    "convolutions_onednn_float32",
    "convolutions_onednn_avx2",
    "convolutions_onednn_preact_resnet_18",
    "convolutions_onednn_bfloat16_wrn_32_10_madry",
    "convolutions_onednn_bfloat16_resnet_50",
)
KERNELS = ("kernels_preact_resnet_18", "kernels_wrn_10_1", "kernels_resnet_50")
KERNELS_OF_ATTACKS = ("kernels_attack_preact_resnet_18",)
CONVOLUTIONS = ("convolutions_avx2", "convolutions_avx512")
NETWORKS_CONVOLUTIONS = (
    "convolutions_avx512_32",
    "convolutions_avx512_128",
    "convolutions_avx512_resnet_50",
    "convolutions_avx512_mnist",
)
PROFILES = ("profile", "profile_resnet_50", "profile_128")
STEP_CHANGES = ("step_changes", "step_changes_128")
# The records of benchmarks.ablation, and the attacks to show. Gains are measured under the
# last attack.
ABLATIONS = {
    "ablation": ("natural", WORST_CASE),
    "ablation_straight_through": ("natural", "pgd-20", "apgd-t"),
    "ablation_test": ("natural", "pgd-20", "autoattack"),
    "ablation_6000": ("natural", "pgd-20", "apgd-t"),
    "ablation_test_6000": ("natural", "pgd-20", "cw-20", "apgd-t"),
    "ablation_test_6000_four_seeds": ("natural", "pgd-20", "apgd-t"),
    "ablation_test_6000_autoattack": ("natural", "pgd-20", "autoattack"),
    "ablation_6000_random_start": ("natural", "pgd-20", "apgd-t"),
    "ablation_wrn_16_2": ("natural", "apgd-t"),
    "ablation_test_wrn_16_2": ("natural", "apgd-t"),
    "ablation_6000_fixed": ("natural", "pgd-20", "apgd-t"),
    "ablation_test_6000_fixed": ("natural", "pgd-20", "apgd-t"),
    "ablation_test_6000_fixed_autoattack": ("natural", "pgd-20", "autoattack"),
    "ablation_test_wrn_16_2_fixed": ("natural", "apgd-t"),
}
_NOT_YET_RUN = "not yet run"
_NAMES = {
    "natural": "natural",
    "fgsm": "FGSM",
    "pgd-20": "PGD-20",
    "pgd-100": "PGD-100",
    "cw-100": "CW-100",
    "pgd-20-x10": "PGD-20, ten restarts",
    "apgd-ce": "APGD-CE",
    "apgd-dlr": "APGD-DLR",
    "apgd-t": "APGD-T",
    "cw-20": "CW-20",
    "fab-t": "FAB-T",
    "square": "Square",
    "autoattack": "AutoAttack",
    "autoattack-quick": "AutoAttack, quick against standard,",
    "pgd-10": "PGD-10",
}


def rendered(text: str) -> str:
    """Return `text` with the figures of the records in every block.

    Raise KeyError for a block of an unknown name.
    """
    return _BLOCK.sub(
        lambda block: f"<!-- {block[1]} -->{BLOCKS[block[1]]()}<!-- end -->", text
    )


def results(name: str) -> dict:
    return read_json(RESULTS / f"{name}.json")["results"]


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _percent(share, digits=1):
    return f"{100 * share:.{digits}f}"


def _with_interval(row):
    low, high = map(_percent, row["interval"])
    return f"{_percent(row['accuracy'])} ({low} to {high})"


def _quickstart():
    return f"{results('quickstart')['median']:.0f} s"


def _start_up():
    return "; ".join(
        f"{row['compile_seconds']['first']:.1f} s, then "
        f"{row['compile_seconds']['second']:.1f} s for {name}"
        for name, row in results("start_up").items()
        if name != "import"
    )


def _digits():
    attacks = ("natural", "fgsm", "pgd-20", "pgd-100", "cw-100")
    titles = {"digits_natural": "natural", "digits_free8": "Free-8"}
    rows = [
        [
            title,
            *map(_mean, map(results("digits")[name]["accuracy"].get, attacks)),
        ]
        for name, title in titles.items()
    ]
    return _table(["training", *map(_NAMES.get, attacks)], rows)


def _reproduced(record):
    """Return our figures above the published ones, row by row.

    A row without a record reads "not yet run".
    """
    heads = ["training", *map(_NAMES.get, ATTACKS), "minutes"]
    rows = []
    for name, title in sorted(TABLES["cifar10"].items(), key=_by_strength):
        result = record.get(name)
        if not result:
            rows.append([title, *[_NOT_YET_RUN] * (len(heads) - 1)])
            continue
        accuracies = (result["evaluation"][attack]["accuracy"] for attack in ATTACKS)
        minutes = result["training"]["seconds"] / 60
        rows.append([title, *map(_percent, accuracies), f"{minutes:.1f}"])
        published = result["published"]
        figures = (f"*{published['accuracy'][attack]:.2f}*" for attack in ATTACKS)
        rows.append(["*published*", *figures, f"*{published['minutes']}*"])
    return _table(heads, rows)


def _by_strength(item):
    """Sort natural training first, then Free-m by m, then K-PGD."""
    title = item[1]
    kind = ("natural", "Free", "7").index(title.split("-")[0])
    return kind, int(title.split("-")[1]) if kind == 1 else 0


def _cost():
    heads = ["network", "natural", "Free-2", "Free-8", "7-PGD"]
    rows = [
        [
            network,
            f"{result['methods']['natural']['seconds_per_update']:.2f} s",
            *(
                f"{result['ratios'][ratio]:.2f}"
                for ratio in (
                    "free-2 / natural",
                    "free-8 / natural",
                    "7-pgd / natural",
                    f"{ONE_A_CALL} / natural",
                    "compilation free-8 / free-2",
                )
            ),
        ]
        for network, result in results("step_cost").items()
    ]
    return _table([*heads, ONE_A_CALL, "compilation, Free-8 to Free-2"], rows)


def _milliseconds(row):
    milliseconds = 1000 * row["seconds_per_update"]
    return f"{milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"


def _measured(setting):
    """Return network, precision and batch; also the images, unless CIFAR-10 or ImageNet."""
    network = _on_images(setting["network"], setting["images"])
    return f"{network}, {setting['dtype']}, {setting['batch']}"


def _on_images(network, images):
    return f"{network} on {images}" if images in ("digits", "mnist") else network


def _training(records):
    heads = ["network, precision, batch", "training", "ours", "PyTorch", "compilation"]
    heads += ["memory", "of the product's rate", "PyTorch / ours"]
    rows = []
    for result in (each for name in records for each in results(name).values()):
        title = _measured(result["setting"])
        for method, sides in result["methods"].items():
            times = [_milliseconds(sides["ours"]), _NOT_YET_RUN]
            ratio = result["ratios"][method].get("pytorch / ours")
            if ratio:
                times[1] = _milliseconds(sides["pytorch"])
            cells = [
                *times,
                _both(sides, compilation),
                _both(sides, lambda row: f"{memory(row) / 1e6:,.0f} MB"),
                _both(sides, lambda row: f"{_percent(row['utilisation'], 0)} %"),
                f"{ratio:.2f}" if ratio else "",
            ]
            rows.append([title, method, *cells])
            title = ""
    return _table(heads, rows)


def _against_pytorch():
    """Return PyTorch's time for an update of Free-8 divided by ours."""
    columns = {
        heading: {
            _measured(result["setting"]): ratio
            for record in TRAINING[name]
            for result in results(record).values()
            if (ratio := result["ratios"]["free-8"].get("pytorch / ours"))
        }
        for heading, name in (
            ("held to AVX2", "training_avx2"),
            ("AVX-512", "training_avx512"),
        )
    }
    titles = dict.fromkeys(itertools.chain(*columns.values()))
    rows = [
        [
            title,
            *(
                f"{ratios[title]:.2f}" if title in ratios else _NOT_YET_RUN
                for ratios in columns.values()
            ),
        ]
        for title in titles
    ]
    return _table(["network, precision, batch", *columns], rows)


def _reference_style():
    """Return the time of an update in the style of the reference code, divided by ours."""
    return ", ".join(
        f"{ratio:.2f} ({result['setting']['network']})"
        for result in results(REFERENCE_STYLE).values()
        if (ratio := result["ratios"]["free-8"].get("reference-style / ours"))
    )


def _waiting():
    """Return the largest share of its time that any training waited for batches."""
    shares = (
        sides["ours"]["input_wait_fraction"]
        for name in itertools.chain(*TRAINING.values())
        for result in results(name).values()
        for sides in result["methods"].values()
    )
    return f"at most {_percent(max(shares), 2)} %"


def _both(sides, said):
    """Return our figure and, where PyTorch was run, PyTorch's."""
    return " / ".join(said(sides[who]) for who in ("ours", "pytorch") if who in sides)


_PASSES = {
    "forward": "forward",
    "images": "gradient of images",
    "kernel": "gradient of kernel",
}


_SIDES = ("ours", "pytorch")


def _convolutions(name):
    rows = [
        [
            layer,
            *(
                f"{rates[which]['ours']:.0f} / {rates[which]['pytorch']:.0f}"
                for which in _PASSES
            ),
        ]
        for layer, rates in results(name).items()
    ]
    return _table(["layer", *_PASSES.values()], rows)


def _convolutions_by_onednn(name):
    record = results(name)
    if networks := record.get("networks"):
        (record,) = networks.values()
    rows = [
        [
            layer,
            *(
                f"{rates[which]['ours']:.0f} / {rates[which]['onednn']:.0f}"
                for which in _PASSES
            ),
        ]
        for layer, rates in record.items()
    ]
    return _table(["layer", *_PASSES.values()], rows)


def _kernels(records):
    """Return the time of an update, or of a step, with XLA's and oneDNN's convolutions."""
    rows = []
    for record in map(results, records):
        for name, row in record["rows"].items():
            times = [
                f"{1000 * row['seconds_per_update'][side]['processor']:.0f} ms"
                for side in ("xla", "onednn")
            ]
            rows.append([name, *times, f"{row['xla / onednn']['processor']:.2f}"])
    heads = "network, precision, batch|XLA's|oneDNN's|XLA's / oneDNN's"
    return _table(heads.split("|"), rows)


def _convolutions_of_networks():
    """Return the time of all convolutions of a network in turn, ours and PyTorch's."""
    rows = []
    for record in map(results, NETWORKS_CONVOLUTIONS):
        for network, layers in record["networks"].items():
            images = record.get("images") or usual_images(network)
            taken = {
                (which, who): sum(
                    layer["count"] * layer["flop"] / layer[which][who] / 1e9
                    for layer in layers.values()
                )
                for which in _PASSES
                for who in _SIDES
            }
            sums = {who: sum(taken[which, who] for which in _PASSES) for who in _SIDES}
            rows.append(
                [
                    f"{_on_images(network, images)}, {record['batch']}",
                    *(
                        " / ".join(f"{1000 * taken[which, who]:.3g}" for who in _SIDES)
                        for which in _PASSES
                    ),
                    f"{sums['pytorch'] / sums['ours']:.2f}",
                ]
            )
    titles = [f"{title}, ms" for title in _PASSES.values()]
    return _table(["network, batch", *titles, "PyTorch / ours"], rows)


def _channels_first():
    """Return the median rate with channels first over that with channels last, by pass."""
    said = []
    for which, title in _PASSES.items():
        shares = (
            rates[which]["channels first"] / rates[which]["ours"]
            for rates in results("convolutions_avx512").values()
        )
        said.append(f"{statistics.median(shares):.2f} ({title})")
    return ", ".join(said)


def _profile():
    """Return kinds in rows and networks in columns, with the time of an update on top."""
    records = map(results, PROFILES)
    columns = {
        f"{name}, {record['batch']}, {_milliseconds(row)}": row["shares"]
        for record in records
        for name, row in record["networks"].items()
    }
    kinds = next(iter(columns.values()))
    rows = [
        [kind, *(f"{_percent(shares[kind], 0)} %" for shares in columns.values())]
        for kind in kinds
    ]
    return _table(["network, batch, an update's time", *columns], rows)


def _changes():
    record = {k: v for name in STEP_CHANGES for k, v in results(name).items()}

    def cell(rows, name):
        if name not in rows:
            return "not tried"
        row = rows[name]
        time = _milliseconds(row) if name == AS_IT_IS else f"{row['/ as it is']:.2f}"
        return f"{time}, {row['peak_memory']['bytes'] / 1e6:,.0f} MB"

    names = dict.fromkeys(name for rows in record.values() for name in rows)
    rows = [[name, *(cell(found, name) for found in record.values())] for name in names]
    return _table(["variant", *record], rows)


def _on_h100():
    """Return the bytes that an update moves, and the bytes of the rest in each variant."""
    record = results("accelerators_h100")
    found = {}
    for row in record["rows"]:
        setting = row["network"], row["batch_size"], row["devices"]
        found.setdefault(setting, {})[row["variant"]] = row
    rows = []
    for (network, batch, chips), variants in found.items():
        row = variants[AS_IT_IS]
        rows.append(
            [
                f"{network}, {batch}",
                str(chips),
                str(row["convolutions"]["count"] + row["other_kernels"]["count"]),
                _gigabytes(row["convolutions"]),
                *(
                    _gigabytes(variants[name]["other_kernels"])
                    for name in (AS_IT_IS, NARROW, ONE_VECTOR)
                ),
                f"{row['memory'] / 1e9:.1f} GB",
            ]
        )
    heads = "network, batch|chips|kernels|convolutions move|all else moves"
    heads += f"|all else, {NARROW}|all else, {ONE_VECTOR}|memory of a chip"
    return _table(heads.split("|"), rows)


def _gigabytes(kind):
    return f"{kind['bytes'] / 1e9:.2f} GB"


def _beside(name):
    """Return how many convolutions run beside the all-reduces, on the most chips."""
    rows = results("accelerators_h100")["rows"]
    chips = max(row["devices"] for row in rows)
    return ", ".join(
        f"{row['all_reduces']['convolutions_beside']:.0f} ({row['network']})"
        for row in rows
        if row["devices"] == chips and row["variant"] == name
    )


def _on_v5e():
    rows = results("accelerators_v5e")["rows"]
    bytes_of = {(row["network"], row["variant"]): row["bytes"] for row in rows}
    return ", ".join(
        f"{bytes_of[network, AS_IT_IS] / 1e9:.1f} GB an update instead of "
        f"{bytes_of[network, ONE_VECTOR] / 1e9:.1f} GB ({network})"
        for network in dict.fromkeys(row["network"] for row in rows)
    )


def _gathered():
    """Return the cost of the variant on MNIST's size and on digits, relative to the step."""
    shares = []
    for images in ("mnist", "digits"):
        (rows,) = results(f"step_changes_small_cnn_{images}").values()
        shares.append(f"{rows[GATHERED]['/ as it is']:.2f}")
    return " and ".join(shares)


def _of_resnet_50(variant):
    """Return the cost of the variant for ResNet-50, relative to the step."""
    (rows,) = results("step_changes_resnet_50").values()
    return f"{rows[variant]['/ as it is']:.2f}"


def _at_128(variant):
    """Return the cost of the variant for small networks with BatchNorm, relative to the step."""
    return ", ".join(
        f"{rows[variant]['/ as it is']:.2f} ({name.split(',')[0]})"
        for name, rows in results("step_changes_small").items()
    )


def _fine_tuning(name):
    """Return a row for each training, with its updates and robust accuracies."""
    path = RESULTS / f"fine_tuning_{name}.json"
    if not path.exists():
        return f"\n{_NOT_YET_RUN}\n"
    rows = [
        [row, f"{found['updates']:,}", *map(_mean, found["accuracy"].values())]
        for row, found in results(path.stem)["rows"].items()
    ]
    heads = map(_NAMES.get, FINE_TUNING_ATTACKS)
    return _table(["training", "updates", *heads], rows)


def _frontier(name):
    """Return a row for each training of each budget, the most robust row first."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"\n{_NOT_YET_RUN}\n"
    attacks = ("natural", "apgd-t", "autoattack")
    rows = []
    for budget in results(name)["budgets"]:
        ranked = sorted(
            budget["rows"].values(),
            key=lambda row: row["accuracy"]["apgd-t"]["mean"],
            reverse=True,
        )
        for row in ranked:
            # Only the largest budget has AutoAttack.
            accuracy = map(row["accuracy"].get, attacks)
            rows.append(
                [
                    f"{budget['flop'] / 1e12:,.1f}",
                    row["title"],
                    f"{row['updates']:,}",
                    f"{statistics.mean(row['seconds']) / 60:.1f}",
                    *(_mean(each) if each else "" for each in accuracy),
                ]
            )
    heads = ["TFLOP", "training", "updates", "minutes", *map(_NAMES.get, attacks)]
    return _table(heads, rows)


def _speedrun():
    """Return the accuracies of the hour over its runs."""
    if not (RESULTS / "speedrun.json").exists():
        return _NOT_YET_RUN
    found = results("speedrun")
    natural, robust = (
        _mean(found["accuracy"][attack]) for attack in ("natural", "autoattack")
    )
    examples = found["runs"][0]["evaluation"]["autoattack"]["examples"]
    return (
        f"{natural} % natural and {robust} % under AutoAttack on {examples:,} test "
        f"images, {len(found['runs'])} runs of {found['minutes']:g} minutes"
    )


def _corruptions():
    """Return a row for each training, with its errors under groups of corruptions."""
    path = RESULTS / "corruptions.json"
    if not path.exists():
        return f"\n{_NOT_YET_RUN}\n"
    columns = ("natural", "pgd-20", "corruptions", *GROUPS)
    rows = [
        [row, *(_mean(found[name]) for name in columns)]
        for row, found in results(path.stem)["rows"].items()
    ]
    heads = ("natural", "PGD-20", "mean of all corruptions", *GROUPS)
    return _table(["training", *heads], rows)


def _certified():
    """Return a row for each data set, with what is certified on its test images."""
    rows = []
    titles = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
    for name, title in titles.items():
        path = RESULTS / f"certified_{name}.json"
        if not path.exists():
            rows.append([title, *[_NOT_YET_RUN] * 6])
            continue
        found = results(path.stem)
        measured = [found["evaluation"][attack] for attack in ("natural", "pgd-20")]
        measured += [found["certified"][bound] for bound in ("ibp", "crown-ibp")]
        rows.append(
            [
                title,
                epsilon_text(found["epsilon"]),
                f"{found['training']['updates']:,}",
                *map(_with_interval, measured),
            ]
        )
    heads = "images|epsilon|updates|natural|PGD-20|certified, IBP|certified, CROWN-IBP"
    return _table(heads.split("|"), rows)


def _certificates():
    """Return the rate of CROWN, and what it certifies beside what PGD breaks."""
    found = results("certificates")["crown"]
    return (
        f"{found['images']:,} images took {found['processor_seconds']:.0f} seconds of the "
        f"processor, {found['images_per_second_on_two_cores']:.1f} images a second on two "
        f"cores,\nafter a compilation of {found['first_call']['processor_seconds']:.0f} "
        f"seconds. {found['certified']:,} of them are certified, and "
        f"{found['broken_by_pgd_20']:,} are wrong under PGD-20"
    )


def _sandwich():
    """Return a row for each training, with both bounds at every epsilon."""
    path = RESULTS / "sandwich.json"
    if not path.exists():
        return f"\n{_NOT_YET_RUN}\n"
    found = results(path.stem)
    radii = list(next(iter(found.values()))["by_epsilon"])
    rows = [
        [
            name,
            _percent(result["natural"], 0),
            *(
                f"{_percent(at['certified'], 0)} to {_percent(at['attacked'], 0)}"
                for at in result["by_epsilon"].values()
            ),
        ]
        for name, result in found.items()
    ]
    return _table(["training", "natural", *radii], rows)


def _fields():
    """Return a row for each field of a configuration."""
    rows = [
        [
            f"`{field.name}`",
            f"`{field.default_text}`" if field.default_text else "none",
            field.allowed.text,
            field.meaning + (f"; only with {field.only.text}" if field.only else ""),
        ]
        for field in FIELDS
    ]
    return _table(["field", "default", "allowed", "meaning"], rows)


def _methods():
    """Return a row for each training method, with its cost at the default settings."""
    attack = base_config().attack
    rows = [
        [
            f"`{method.name}`",
            method.title(attack),
            ", ".join(f"`attack.{name}`" for name in method.settings),
            str(method.updates(attack)),
            str(method.passes(attack)),
        ]
        for method in METHODS.values()
    ]
    heads = (
        "method|at the default settings|fields|updates a minibatch|passes a minibatch"
    )
    return _table(heads.split("|"), rows)


def _mean(figure):
    return f"{_percent(figure['mean'])} ± {_percent(figure['deviation'])}"


def _gain(figure):
    gain = figure["gain"]
    return f"{100 * gain['mean']:+.1f} ± {_percent(gain['deviation'])}"


def _gains(name):
    """Return a row for each variant, with its gain under the attack of the last column."""
    record, attacks = results(name), ABLATIONS[name]
    images = "test images" if record["part"] == "test" else "held-out images"
    rows = [
        [
            variant,
            *(_mean(row["accuracy"][attack]) for attack in attacks),
            "" if variant == BASE else _gain(row["accuracy"][attacks[-1]]),
        ]
        for variant, row in record["variants"].items()
    ]
    titles = [_NAMES.get(attack, attack) for attack in attacks]
    return _table([images, *titles, "gain"], rows)


def _random_start():
    """Return the gain of a random start over four replays alone, seed by seed."""
    record = results("ablation_6000_random_start")["variants"]
    names = ("four replays, random start", "four replays")
    values = (record[name]["accuracy"]["apgd-t"]["values"] for name in names)
    return _gain(summary(*values))


def _robustness():
    attacks = (*ATTACKS, "autoattack")
    titles = {
        "digits_natural-0": "digits, natural",
        "digits_free8-0": "digits, Free-8",
        "cifar10_natural": "CIFAR-10, natural",
        "cifar10_free8": "CIFAR-10, Free-8",
        "cifar10_pgd7": "CIFAR-10, 7-PGD",
    }
    rows = []
    for name, title in titles.items():
        result = results("robustness").get(name)
        if not result:
            rows.append([title, *[_NOT_YET_RUN] * (len(attacks) + 1)])
            continue
        found = result["evaluation"]
        cells = [_percent(found[attack]["accuracy"]) for attack in attacks[:-1]]
        cells.append(_with_interval(found["autoattack"]))
        images, fewer = (
            found[attack]["examples"] for attack in ("natural", "autoattack")
        )
        said = str(images) if images == fewer else f"{images}, AutoAttack {fewer}"
        rows.append([title, said, *cells])
    return _table(["model", "images", *map(_NAMES.get, attacks)], rows)


def _parity():
    attacks = ("pgd-20", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
    attacks += ("autoattack",)
    titles = {
        "cifar10_free8 linf 0.0314": "Free-8, 8/255",
        "cifar10_natural linf 0.0314": "natural, 8/255",
        "cifar10_natural linf 0.0039": "natural, 1/255",
        "cifar10_free8 l2 0.5000": "Free-8, L2 0.5",
        "cifar10_natural l2 0.5000": "natural, L2 0.5",
    }
    rows = [
        [
            titles[setting],
            *(
                f"{row['ours']:.1f} / {row['reference']:.1f}" if row else _NOT_YET_RUN
                for row in map(result["attacks"].get, attacks)
            ),
        ]
        for setting, result in results("attack_parity").items()
    ]
    return _table(["CIFAR-10 model", *map(_NAMES.get, attacks)], rows)


# The codes that the rows of `attack_parity --set=digits` are compared with.
_DIGITS_CODES = {
    ("l1", "apgd-ce"): "APGD-CE of AutoAttack's authors",
    ("l1", "apgd-t"): "APGD-T of AutoAttack's authors",
    ("l1", "fab-t"): "FAB-T of AutoAttack's authors",
    ("l1", "square"): "Square of AutoAttack's authors",
    ("l1", "fmn"): "FMN of Foolbox",
    ("l2", "fmn"): "FMN of adv-lib",
    ("l2", "ddn"): "DDN of Foolbox",
    ("linf", "fmn"): "FMN of Foolbox",
    (
        "patch",
        "one place",
    ): "patch of the Adversarial Robustness Toolbox, in the middle",
    ("patch", "five places"): "sign ascent at five random places",
    ("patch", "all places"): "sign ascent at all places",
    ("l0", "pgd-50-x5"): "sigma-zero of adv-lib",
}


def _parity_digits():
    rows = []
    for result in results("attack_parity_digits").values():
        norm = result["norm"]
        for name, row in result["attacks"].items():
            attack = {"five places": "pgd-50-x5", "one place": "pgd-50-x5"}.get(name)
            attack = attack or {"all places": "pgd-50-x20", "ddn": "fmn"}.get(
                name, name
            )
            rows.append(
                [
                    f"{THREATS[norm].title} {result['epsilon']:g}",
                    f"`{attack}`",
                    _DIGITS_CODES[norm, name],
                    f"{row['ours']:.1f} / {row['reference']:.1f}",
                ]
            )
    return _table(["threat", "ours", "reference", "robust, percent"], rows)


def _speed():
    files = {"attack_speed_pgd_100": "pgd-100", "attack_speed": "autoattack"}
    said = [_against_reference(file, name) for file, name in files.items()]
    return f"{results('attack_speed')['network']}, {', '.join(said)}"


def _speed_of_quick():
    """Return the seconds of our quick version and of the authors' standard one."""
    if not (RESULTS / "attack_speed_quick.json").exists():
        return _NOT_YET_RUN
    row = results("attack_speed_quick")["autoattack-quick"]
    ours, reference = (row["standing"][who] for who in ("ours", "reference"))
    return (
        f"{_against_reference('attack_speed_quick', 'autoattack-quick')}, {ours} and "
        f"{reference} robust"
    )


def _speed_of_small_models():
    """Return the seconds of AutoAttack on digits, compilation included."""
    files = ("attack_speed_small_cnn", "attack_speed_small_cnn_1")
    said = [_against_reference(file, "autoattack") for file in files]
    return f"{results(files[0])['network']}, {', '.join(said)}"


def _against_reference(file, name):
    record = results(file)
    row = record[name]
    images = "1 image" if record["examples"] == 1 else f"{record['examples']} images"
    ours, reference = (row["seconds"][who] for who in ("ours", "reference"))
    digits = 0 if ours >= 100 else 1
    return (
        f"{_NAMES[name]} on {images} {ours:.{digits}f} s against "
        f"{reference:.{digits}f} s ({row['reference / ours']:.2f} times as fast)"
    )


def _flatness():
    titles = {"cifar10_natural": "natural training"}
    titles |= {"cifar10_free8": "Free-8", "cifar10_pgd7": "7-PGD"}

    def said(figure):
        means = {
            title: results("figures")[name]["flatness"][figure]["mean"]
            for name, title in titles.items()
        }
        return ", ".join(
            f"{mean:.{1 if mean >= 1 else 2}f} for {title}"
            for title, mean in means.items()
        )

    return (
        f"the largest rise of the loss within the ball is\n{said('rise')};\n"
        f"the local linearity error (Qin et al. 2019) {said('error')}"
    )


def _folder():
    titles = {"natural": "natural", "free4": "Free-4"}
    rows = [
        [title, *(_with_interval(found[attack]) for attack in ("natural", "pgd-10"))]
        for name, title in titles.items()
        for found in [results("imagenet_folder_cpu")[name]["evaluation"]]
    ]
    return _table(["training", "natural", "PGD-10"], rows)


def _transformers():
    networks = {"convnext-atto": "ConvNeXt-Atto", "vit": "ViT, 6 blocks of width 96"}
    rows = [
        [
            networks[network],
            {"natural": "natural", "free-4": "Free-4"}[method],
            *(
                _with_interval(found["evaluation"][attack])
                for attack in ("natural", "pgd-20", "apgd-t")
            ),
        ]
        for row, found in results("transformers").items()
        for network, method in [row.split(", ")]
    ]
    return _table(["network", "training", "natural", "PGD-20", "APGD-T"], rows)


def _decoded():
    methods = results("input_rate")["methods"]
    first, *others, last = (f"{row['images_decoded']:,}" for row in methods.values())
    return (
        f"{first} for natural training, {', '.join(others)} and {last} for Free-2, "
        "-4 and -8"
    )


def _readers():
    readers = results("input_rate")["readers"]
    rates = (
        f"{found['images_per_second']:,.0f} by {it}" for it, found in readers.items()
    )
    return " and ".join(rates)


def _replays():
    curves = results("replays")["cifar10"]

    def at(curve, replays, attack="natural"):
        return _percent(curves[curve][str(replays)][attack]["mean"], 0)

    return (
        f"natural training falls from {at('natural, replayed', 1)} % at m = 1 to "
        f"{at('natural, replayed', 8)} % at\nm = 8 and "
        f"{at('natural, replayed', 16)} % at m = 16; with batches m times as large it is "
        f"{at('natural, larger batches', 8)} and\n"
        f"{at('natural, larger batches', 16)} %"
    )


def _gallery_defences():
    lines = [
        "| defence | paper | masks by | here | broken by |",
        "|---|---|---|---|---|",
    ]
    for defence in DEFENCES.values():
        module = inspect.getmodule(defence.build).__name__.rpartition(".")[2]
        path = f"../freeadv_jax/gallery/defences/{module}.py"
        lines.append(
            f"| [`{defence.name}`]({path}) | {defence.paper} | {defence.kind} | "
            f"{defence.parameters} | {defence.broken_by} |"
        )
    return "\n".join(["", *lines, ""])


def _gallery(record):
    path = RESULTS / f"{record}.json"
    if not path.exists():
        return f"\n{_NOT_YET_RUN}\n"
    found = read_json(path)
    lines = [
        "",
        "| defence | natural | naive PGD-20 | red flags | adaptive | published |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        defence = DEFENCES[row["defence"]]
        natural, naive, adaptive = (
            f"{100 * row[name]:.1f}" for name in ("natural", "naive", "adaptive")
        )
        published = "" if defence.published is None else f"{100 * defence.published:g}"
        if "certified" in row:
            adaptive += f", certified {100 * row['certified']:.1f}"
        lines.append(
            f"| {defence.title} | {natural} | {naive} | "
            f"{', '.join(row['flags']) or 'none'} | {adaptive} | {published} |"
        )
    return "\n".join([*lines, ""])


def _quick():
    heads = [
        *("network", "threat", "images", "robust to both", "by one alone"),
        *("passes of a survivor", "of an image", "of an image, audit included"),
    ]
    if not (RESULTS / "quick.json").exists():
        return f"\n{_NOT_YET_RUN}\n"
    rows = []
    for name, row in results("quick")["rows"].items():
        versions = [row[version] for version in ("quick", "standard")]
        quick, standard = (version["robust"] for version in versions)
        # The quick version breaks no image that the standard one leaves.
        assert row["different"] == quick - standard
        radius = f"{255 * row['epsilon']:.0f}/255" if row["norm"] == "linf" else "0.5"
        threat = {"linf": "L-inf", "l2": "L2"}[row["norm"]]
        passes = (
            " / ".join(f"{version[what]:,.0f}" for version in versions)
            for what in ("passes_of_a_survivor", "passes_of_an_image")
        )
        rows.append(
            [
                *(name, f"{threat} {radius}", f"{row['images']:,}", str(standard)),
                *(str(row["different"]), *passes),
                f"{with_audit(row)['passes_of_an_image']:,.0f}",
            ]
        )
    return _table(heads, rows)


def _attack_memory():
    attacks = results("attack_memory")["attacks"].items()
    return ", ".join(
        f"{found['returned / kept']:.2f} ({name})" for name, found in attacks
    )


def _scaling_evaluation():
    heads = ["machine", "network", "version", "passes of an image", "seconds", "bytes"]
    if not (RESULTS / "scaling_evaluation.json").exists():
        return f"\n{_NOT_YET_RUN}\n"
    rows = []
    for machine, networks in results("scaling_evaluation").items():
        for network, versions in networks.items():
            for version, found in versions.items():
                cells = [
                    f"{found['passes_of_an_image']:,.0f}",
                    f"{found['seconds']:,.1f}",
                    f"{found['bytes'] / 1e12:,.1f} TB",
                ]
                rows.append([machine, network, version, *cells])
    return _table(heads, rows)


BLOCKS = {
    "gallery_defences": _gallery_defences,
    "gallery": partial(_gallery, "gallery"),
    "gallery_digits": partial(_gallery, "gallery_digits"),
    "quick": _quick,
    "scaling_evaluation": _scaling_evaluation,
    "attack_memory": _attack_memory,
    "quickstart": _quickstart,
    "start_up": _start_up,
    "digits": _digits,
    "cifar10_scaled_down": lambda: _reproduced(
        results("reproduce_cifar10_scaled_down")
    ),
    "cost": _cost,
    **{block: partial(_training, records) for block, records in TRAINING.items()},
    "against_pytorch": _against_pytorch,
    "reference_style": _reference_style,
    "waiting": _waiting,
    **{name: partial(_convolutions, name) for name in CONVOLUTIONS},
    **{name: partial(_convolutions_by_onednn, name) for name in BY_ONEDNN},
    "kernels": partial(_kernels, KERNELS),
    "kernels_of_attacks": partial(_kernels, KERNELS_OF_ATTACKS),
    "convolutions_of_networks": _convolutions_of_networks,
    "channels_first": _channels_first,
    "profile": _profile,
    "changes": _changes,
    "gathered": _gathered,
    "pooled": partial(_of_resnet_50, POOLED),
    "three_axes": partial(_of_resnet_50, THREE_AXES),
    "kept_memory": partial(_at_128, KEPT),
    "no_products": partial(_at_128, NO_PRODUCTS),
    "on_h100": _on_h100,
    "beside": partial(_beside, AS_IT_IS),
    "on_v5e": _on_v5e,
    **{name: partial(_gains, name) for name in ABLATIONS},
    "random_start": _random_start,
    "robustness": _robustness,
    "parity": _parity,
    "parity_digits": _parity_digits,
    "speed": _speed,
    "speed_of_quick": _speed_of_quick,
    "speed_of_small_models": _speed_of_small_models,
    "flatness": _flatness,
    "folder": _folder,
    "transformers": _transformers,
    "decoded": _decoded,
    "readers": _readers,
    "replays": _replays,
    "fine_tuning_digits": partial(_fine_tuning, "digits"),
    "fine_tuning_cifar10": partial(_fine_tuning, "cifar10"),
    "frontier": partial(_frontier, "frontier"),
    "speedrun": _speedrun,
    "corruptions": _corruptions,
    "certified": _certified,
    "certificates": _certificates,
    "sandwich": _sandwich,
    "fields": _fields,
    "methods": _methods,
}


def main(argv):
    Parser("benchmarks.readme", __doc__).parse_args(argv[1:])
    for document in DOCUMENTS:
        document.write_text(rendered(document.read_text()))
        print(f"written to {document}")


if __name__ == "__main__":
    run_command(main)
