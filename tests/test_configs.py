"""The files of `configs/`: each loads, is a record, and states its row's recipe."""

import ast
import json
import operator
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from benchmarks import training
from benchmarks.ablation import BASE, VARIANTS
from benchmarks.readme import ABLATIONS, results
from freeadv_jax.config import validate
from freeadv_jax.runs.build import configured_learning_rate, initial_state_of
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.results import configured_attacks
from freeadv_jax.training.optim import learning_rate_schedule

FILES = {path.stem: path for path in sorted(pathlib.Path("configs").glob("*.py"))}
# configs/cifar10_modern.py is this variant of benchmarks.ablation.
MODERN = "four replays, random start, fixed standardisation"
# This is the variant without the last change.
REPLAYS = "four replays, random start"
FAST = ("cifar10_fast_fgsm_rs", "cifar10_fast_free8", "cifar10_fast_pgd7")
PAPER = [
    f"{data}_{row}"
    for data, rows in {
        "cifar10": ("natural", "free2", "free4", "free8", "free10", "pgd7"),
        "cifar100": ("natural", "free2", "free4", "free8", "free10", "pgd2", "pgd7"),
    }.items()
    for row in rows
]

IMAGENET = {  # method, m, network, turns in passes, passes
    "imagenet_natural": ("natural", 1, "resnet-50", (30, 60), 90),
    "imagenet_pgd2": ("pgd", 1, "resnet-50", (30, 60), 90),
    "imagenet_free2": ("free", 2, "resnet-50", (15, 30), 45),
    "imagenet_free4": ("free", 4, "resnet-50", (8, 16), 23),
    "imagenet_free6": ("free", 6, "resnet-50", (5, 10), 15),
    "imagenet_free8": ("free", 8, "resnet-50", (4, 8), 12),
    "imagenet_free4_resnet101": ("free", 4, "resnet-101", (8, 16), 23),
    "imagenet_free4_resnet152": ("free", 4, "resnet-152", (8, 16), 23),
}

# The file's images, and the parameters of its network for 1,000 classes.
FROM_CLEAN_WEIGHTS = {
    "imagenet_vit_s_free4": ("imagenet", 22_050_664),
    "imagenet_convnext_t_free4": ("imagenet", 28_589_128),
    "folder_vit_s_free4": ("folder:PATH", 22_050_664),
    "folder_convnext_t_free4": ("folder:PATH", 28_589_128),
}


def config_of(name):
    return runpy.run_path(str(FILES[name]))["get_config"]()


def docstring_of(name):
    return ast.get_docstring(ast.parse(FILES[name].read_text()))


def parameters(config, num_classes, side=32):
    run = Run(pathlib.Path("nowhere"), config, num_classes, (side, side, 3))
    params = jax.eval_shape(lambda: initial_state_of(run)).params
    return sum(array.size for array in jax.tree.leaves(params))


def test_every_row_of_the_tables_has_its_file():
    assert set(PAPER) | set(FAST) | set(IMAGENET) <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_configuration_is_valid(name):
    config = config_of(name)
    assert config.is_locked
    validate(config)
    attacks = configured_attacks(config, config.evaluation.attacks, num_classes=10)
    assert attacks[0].name == "natural"


@pytest.mark.parametrize("name", FILES)
def test_the_docstring_is_the_record(name):
    lines = docstring_of(name).splitlines()
    command = f"Command: python -m freeadv_jax.main --config=configs/{name}.py"
    if not name.startswith("digits"):
        images = (
            "data.name=folder:PATH" if name.startswith("folder") else "data.dir=DIR"
        )
        command += f" --config.{images}"
        assert any(line.startswith("Published: ") for line in lines)
    if name in FROM_CLEAN_WEIGHTS:
        command += " --config.init=FILE"
    assert command in lines
    assert any(line.startswith("Ours: ") for line in lines)


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_has_the_papers_recipe(name):
    config = config_of(name)
    data, row = name.split("_")
    kind, number = re.fullmatch(r"(natural|free|pgd)(\d*)", row).groups()
    assert config.method == kind
    assert config.data.name == data
    assert config.updates == 80_000
    assert config.batch_size == 128
    assert (config.data.pad, config.data.flip) == (2, True)
    assert config.model.name == "wrn-32-10-madry"
    assert config.model.normalization == "per_image"
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.schedule) == (0.1, "step")
    assert optimizer.turns == (0.5, 0.75)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (optimizer.weight_decay, optimizer.decayed) == (2e-4, "kernels")
    assert (config.attack.norm, config.attack.epsilon) == ("linf", 8 / 255)
    if kind == "free":
        assert config.attack.replays == int(number)
        assert config.attack.step_size == config.attack.epsilon
        assert not config.attack.straight_through
    if kind == "pgd":
        assert config.attack.steps == int(number)
        assert config.attack.step_size == 2 / 255
    assert config.evaluation.attacks == (
        "natural",
        "pgd-20",
        "pgd-100",
        "cw-100",
        "pgd-20-x10",
    )
    assert config.evaluation.step_size == 2 / 255
    assert config.evaluation.examples == 0


@pytest.mark.parametrize("name", FAST)
def test_a_row_of_fast_is_better_than_free_has_its_recipe(name):
    config = config_of(name)
    assert config.data.name == "cifar10"
    assert config.batch_size == 128
    assert (config.data.pad, config.data.flip) == (4, True)
    assert config.model.name == "preact-resnet-18"
    assert config.model.normalization == "mean_std"
    assert config.model.mean == (0.4914, 0.4822, 0.4465)
    assert config.model.std == (0.2471, 0.2435, 0.2616)
    optimizer = config.optimizer
    assert (optimizer.schedule, optimizer.turns) == ("triangular", (0.5,))
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (optimizer.weight_decay, optimizer.decayed) == (5e-4, "all")
    assert config.attack.epsilon == 8 / 255
    assert config.evaluation.attacks == ("natural", "pgd-50-x10")
    assert config.evaluation.step_size == 2 / 255
    passes, replays = (10, 8) if name.endswith("free8") else (15, 1)
    assert config.updates == passes * (50_000 // 128) * replays
    assert (
        config.method,
        config.optimizer.learning_rate,
        config.attack.step_size,
    ) == {
        "cifar10_fast_fgsm_rs": ("fgsm-rs", 0.2, 10 / 255),
        "cifar10_fast_free8": ("free", 0.04, 8 / 255),
        "cifar10_fast_pgd7": ("pgd", 0.2, 2 / 255),
    }[name]
    if config.method == "free":
        assert config.attack.replays == 8
    if config.method == "pgd":
        assert config.attack.steps == 7


@pytest.mark.parametrize(
    ("name", "part"),
    [("cifar10_pgd7", 1 / 4), ("cifar10_fast_fgsm_rs", 1.25), ("imagenet_pgd2", 1 / 2)],
)
def test_the_step_of_an_attack_is_a_part_of_epsilon_whatever_that_is(name, part):
    config = config_of(name)
    config.attack.epsilon = 16 / 255
    assert config.attack.step_size == part * 16 / 255


def test_trades_has_the_authors_settings():
    config = config_of("cifar10_trades")
    assert (config.method, config.attack.beta, config.attack.steps) == ("trades", 6, 10)
    assert (config.attack.norm, config.attack.epsilon) == ("linf", 0.031)
    np.testing.assert_allclose(config.attack.step_size, 0.007)
    np.testing.assert_allclose(config.evaluation.step_size, 0.003)
    assert (config.data.name, config.data.pad, config.batch_size) == ("cifar10", 4, 128)
    assert config.model.name == "wrn-34-10"
    # Images enter the network as they are.
    assert config.model.normalization == "mean_std"
    assert (config.model.mean, config.model.std) == ((0.0,), (1.0,))
    optimizer = config.optimizer
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (optimizer.weight_decay, optimizer.decayed) == (2e-4, "all")
    learning_rate = learning_rate_schedule(
        optimizer.schedule,
        peak=optimizer.learning_rate,
        updates=config.updates,
        turns=tuple(optimizer.turns),
    )
    # Passes are counted from 1, and the 75th has a tenth of the learning rate.
    np.testing.assert_allclose(learning_rate(74 * 390 - 1), 0.1)
    np.testing.assert_allclose(learning_rate(74 * 390), 0.01)
    assert config.updates == 76 * 390
    config.attack.epsilon = 0.062
    np.testing.assert_allclose(config.attack.step_size, 0.014)
    np.testing.assert_allclose(config.evaluation.step_size, 0.006)


def rates(config, *passes):
    """Return the learning rates after so many passes of 390 minibatches."""
    learning_rate = learning_rate_schedule(
        config.optimizer.schedule,
        peak=config.optimizer.learning_rate,
        updates=config.updates,
        turns=tuple(config.optimizer.turns),
    )
    return [float(learning_rate(390 * number)) for number in passes]


def test_mart_has_the_authors_settings():
    config = config_of("cifar10_mart")
    assert (config.method, config.attack.mart_lambda) == ("mart", 5)
    assert (config.attack.steps, config.attack.epsilon) == (10, 0.031)
    np.testing.assert_allclose(config.attack.step_size, 0.007)
    np.testing.assert_allclose(config.evaluation.step_size, 0.003)
    assert (config.data.pad, config.batch_size) == (4, 128)
    assert config.model.name == "cifar-resnet-18"
    assert (config.model.mean, config.model.std) == ((0.0,), (1.0,))
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.decayed) == (3.5e-3, "all")
    assert config.updates == 120 * 390
    # Passes are counted from 1: the 75th, 90th and 100th have lower rates.
    np.testing.assert_allclose(
        rates(config, 73, 74, 89, 99), [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-6
    )


def test_awp_has_the_authors_settings():
    config = config_of("cifar10_awp")
    assert (config.method, config.attack.awp_gamma) == ("awp", 0.01)
    assert (config.attack.steps, config.attack.step_size) == (10, 2 / 255)
    assert config.attack.epsilon == 8 / 255
    assert (config.data.pad, config.batch_size) == (4, 128)
    assert config.model.name == "preact-resnet-18"
    assert config.model.mean == (0.4914, 0.4822, 0.4465)
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.decayed) == (5e-4, "all")
    assert config.updates == 200 * 390
    np.testing.assert_allclose(rates(config, 99, 100, 150), [0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cifar10_alp", {"alp_lambda": 0.5, "steps": 7}),
        ("cifar10_llr", {"llr_lambda": 4, "llr_mu": 3, "steps": 10}),
    ],
)
def test_logit_pairing_and_local_linearity_have_the_recipe_of_7_pgd(name, settings):
    config, other = config_of(name), config_of("cifar10_pgd7")
    assert {field: config.attack[field] for field in settings} == settings
    other.method, other.attack.steps = config.method, config.attack.steps
    assert config.to_dict() == other.to_dict()
    assert config.attack.step_size == 2 / 255


def test_feature_denoising_has_the_settings_that_its_file_names():
    config = config_of("imagenet_denoise152")
    assert config.model.name == "resnet-152-denoise"
    assert (config.method, config.attack.steps) == ("pgd", 30)
    assert (config.attack.epsilon, config.attack.step_size) == (16 / 255, 1 / 255)
    assert (config.batch_size, config.optimizer.learning_rate) == (4096, 1.6)
    assert (config.optimizer.decayed, config.optimizer.label_smoothing) == (
        "kernels",
        0.1,
    )
    assert config.updates == 110 * (1_281_167 // 4096)
    np.testing.assert_allclose(
        np.array(config.optimizer.turns) * 110, (35, 70, 95), rtol=1e-12
    )


def test_the_modern_row_is_the_variant_of_that_name_at_the_price_of_free_8():
    modern, free8 = config_of("cifar10_modern"), config_of("cifar10_free8")
    varied = config_of("cifar10_free8")
    varied.update_from_flattened_dict(VARIANTS[MODERN])
    assert modern.to_dict() == varied.to_dict() != free8.to_dict()
    flop = [
        training.update_flop(config, 1) * config.updates * config.batch_size
        for config in (modern, free8)
    ]
    assert flop[0] == flop[1]


@pytest.mark.parametrize(
    ("record", "attack"),
    [
        ("ablation_6000_fixed", "apgd-t"),
        ("ablation_test_6000_fixed", "apgd-t"),
        ("ablation_test_6000_fixed_autoattack", "autoattack"),
        ("ablation_test_wrn_16_2_fixed", "apgd-t"),
    ],
)
def test_the_modern_row_gains_with_every_seed_and_more_than_replays_alone(
    record, attack
):
    rows = results(record)["variants"]
    assert rows[MODERN]["fields"] == json.loads(json.dumps(VARIANTS[MODERN]))
    assert rows[MODERN]["flop"] == rows[BASE]["flop"]
    base, replays, modern = (
        rows[name]["accuracy"][attack] for name in (BASE, REPLAYS, MODERN)
    )
    assert len(base["values"]) >= 3
    assert all(map(operator.lt, base["values"], modern["values"]))
    assert all(map(operator.lt, replays["values"], modern["values"]))
    assert modern["gain"]["mean"] > modern["gain"]["deviation"]


@pytest.mark.parametrize(
    "record",
    [
        "ablation_6000",
        "ablation_test_6000",
        "ablation_6000_random_start",
        "ablation_wrn_16_2",
    ],
)
def test_four_replays_from_a_random_start_gain_more_than_seeds_differ(record):
    rows = results(record)["variants"]
    assert rows[REPLAYS]["fields"] == VARIANTS[REPLAYS]
    assert rows[REPLAYS]["flop"] == rows[BASE]["flop"]
    gain = rows[REPLAYS]["accuracy"]["apgd-t"]["gain"]
    assert gain["mean"] > gain["deviation"]


@pytest.mark.parametrize("variant", [REPLAYS, MODERN])
def test_fewer_replays_have_a_higher_natural_accuracy_with_every_seed(variant):
    records = [name for name in ABLATIONS if variant in results(name)["variants"]]
    assert len(records) >= 3
    for record in records:
        rows = results(record)["variants"]
        base, ours = (
            rows[name]["accuracy"]["natural"]["values"] for name in (BASE, variant)
        )
        assert len(base) >= 3
        assert all(map(operator.lt, base, ours)), record


@pytest.mark.parametrize(
    ("record", "first", "both"),
    [
        ("ablation_6000_random_start", "four replays", REPLAYS),
        ("ablation_6000_fixed", "fixed standardisation", MODERN),
    ],
)
def test_the_first_change_gains_and_the_second_adds_to_it_with_every_seed(
    record, first, both
):
    rows = results(record)["variants"]
    base, half, whole = (
        rows[name]["accuracy"]["apgd-t"]["values"] for name in (BASE, first, both)
    )
    assert len(base) >= 3
    for neither, one, two in zip(base, half, whole, strict=True):
        assert neither < one < two


def test_four_replays_gain_under_autoattack_on_average_over_the_seeds():
    strongest = {}
    for record, attack in (
        ("ablation_test_6000_four_seeds", "apgd-t"),
        ("ablation_test_6000_autoattack", "autoattack"),
    ):
        rows = results(record)["variants"]
        assert rows[REPLAYS]["fields"] == VARIANTS[REPLAYS]
        assert rows[REPLAYS]["flop"] == rows[BASE]["flop"]
        strongest[attack] = rows[REPLAYS]["accuracy"][attack]
        gain, values = strongest[attack]["gain"], strongest[attack]["values"]
        # More than the standard error; the docs say that the deviation is as wide.
        assert gain["mean"] > gain["deviation"] / len(values) ** 0.5
    assert strongest["autoattack"]["values"] == strongest["apgd-t"]["values"][:3]


@pytest.mark.parametrize("variant", [BASE, REPLAYS, MODERN])
def test_autoattack_leaves_as_many_images_as_apgd_t(variant):
    cascade, alone = (
        results(record)["variants"][variant]["accuracy"]
        for record in (
            "ablation_test_6000_fixed_autoattack",
            "ablation_test_6000_fixed",
        )
    )
    assert cascade["autoattack"]["values"] == alone["apgd-t"]["values"]


@pytest.mark.parametrize("name", IMAGENET)
def test_a_row_of_imagenet_has_the_papers_recipe(name):
    config = config_of(name)
    method, m, network, turns, passes = IMAGENET[name]
    assert (config.method, config.attack.replays) == (method, m)
    assert config.model.name == network
    assert config.updates == passes * 5004 * m
    optimizer = config.optimizer
    learning_rate = learning_rate_schedule(
        optimizer.schedule,
        peak=optimizer.learning_rate,
        updates=config.updates,
        turns=tuple(optimizer.turns),
    )
    for drops, turn in enumerate(turns):
        update = turn * 5004 * m
        np.testing.assert_allclose(learning_rate(update - 1), 0.1 * 0.1**drops)
        np.testing.assert_allclose(learning_rate(update), 0.01 * 0.1**drops)
    np.testing.assert_allclose(learning_rate(config.updates - 1), 1e-3)
    assert config.batch_size == 256
    assert (config.data.name, config.data.image_size) == ("imagenet", 224)
    assert (config.data.flip, config.data.validation_examples) == (True, 0)
    assert config.model.normalization == "mean_std"
    assert config.model.mean == (0.485, 0.456, 0.406)
    assert config.model.std == (0.229, 0.224, 0.225)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert (optimizer.weight_decay, optimizer.decayed) == (1e-4, "all")
    assert (config.attack.norm, config.attack.epsilon) == ("linf", 4 / 255)
    assert config.evaluation.attacks == ("natural", "pgd-10", "pgd-50", "pgd-100")
    assert config.evaluation.step_size == 1 / 255
    assert config.evaluation.examples == 0
    if method == "pgd":
        assert (config.attack.steps, config.attack.step_size) == (2, 2 / 255)
    else:
        assert config.attack.step_size == 4 / 255


@pytest.mark.parametrize("name", FROM_CLEAN_WEIGHTS)
def test_a_row_from_clean_weights_has_the_optimizer_of_deit_and_convnext(name):
    config = config_of(name)
    images, count = FROM_CLEAN_WEIGHTS[name]
    assert parameters(config, 1000, side=224) == count
    assert (config.method, config.attack.replays) == ("free", 4)
    assert (config.attack.norm, config.attack.epsilon) == ("linf", 4 / 255)
    assert (config.data.name, config.data.image_size) == (images, 224)
    assert (config.model.dtype, config.model.drop_path) == ("bfloat16", 0.1)
    assert config.model.mean == (0.485, 0.456, 0.406)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.beta2) == (
        "adamw",
        0.9,
        0.999,
    )
    assert (optimizer.weight_decay, optimizer.decayed) == (0.05, "kernels")
    assert (optimizer.clip_norm, optimizer.label_smoothing) == (1.0, 0.1)
    # 0.001 for 1,024 images.
    np.testing.assert_allclose(optimizer.learning_rate / config.batch_size, 1e-3 / 1024)
    learning_rate = configured_learning_rate(config)
    peak = optimizer.learning_rate
    tenth = config.updates // 10
    np.testing.assert_allclose(learning_rate(tenth // 2), peak / 2, rtol=0.01)
    np.testing.assert_allclose(learning_rate(config.updates // 2), peak / 2, rtol=0.01)
    assert learning_rate(config.updates - 1) < 1e-6 * peak
    if images == "imagenet":
        # As many updates as 48 passes of natural training.
        assert config.updates == 48 * (1_281_167 // 1024)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("imagenet_free4", 25_557_032),
        ("imagenet_free4_resnet101", 44_549_160),
        ("imagenet_free4_resnet152", 60_192_808),
    ],
)
def test_the_networks_of_imagenet_have_their_numbers_of_parameters(name, count):
    assert parameters(config_of(name), 1000) == count


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [("cifar10_free8", 10, 45_901_914), ("cifar100_free8", 100, 45_959_604)],
)
def test_the_papers_network_has_its_number_of_parameters(name, classes, count):
    assert parameters(config_of(name), classes) == count


def test_preact_resnet_18_has_its_number_of_parameters():
    assert parameters(config_of("cifar10_fast_free8"), 10) == 11_172_170


@pytest.mark.parametrize("method", ["n-fgsm", "fgsm-pgi", "grad-align"])
def test_other_single_step_methods_have_the_recipe_of_fgsm_rs(method):
    config = config_of(f"cifar10_fast_{method.replace('-', '_')}")
    other = config_of("cifar10_fast_fgsm_rs")
    assert (config.method, config.attack.step_size) == (method, 8 / 255)
    assert (config.attack.n_fgsm_noise, config.attack.grad_align_lambda) == (2, 0.2)
    assert config.attack.pgi_lambda == 10
    other.method, other.attack.step_size = method, 8 / 255
    assert config.to_dict() == other.to_dict()


def test_noise_for_smoothing_has_the_recipe_of_the_natural_row():
    config, other = config_of("cifar10_gaussian"), config_of("cifar10_natural")
    assert (config.method, config.attack.gaussian_sigma) == ("gaussian", 0.25)
    other.method, other.evaluation = config.method, config.evaluation
    assert config.to_dict() == other.to_dict()


CERTIFIED = {  # data, network, epsilon, radius in training, last kappa
    "mnist_ibp_01": ("mnist", "dm-medium", 0.1, 0.2, 0.5),
    "mnist_ibp_03": ("mnist", "dm-large", 0.3, 0.4, 0.5),
    "mnist_crown_ibp_01": ("mnist", "dm-large", 0.1, 0.2, 0.5),
    "mnist_crown_ibp_03": ("mnist", "dm-large", 0.3, 0.4, 0.5),
    "cifar10_ibp_2": ("cifar10", "dm-large", 2 / 255, 2.2 / 255, 0.5),
    "cifar10_ibp_8": ("cifar10", "dm-large", 8 / 255, 8.8 / 255, 0.5),
    "cifar10_crown_ibp_2": ("cifar10", "dm-large", 2 / 255, 2.2 / 255, 0.0),
    "cifar10_crown_ibp_8": ("cifar10", "dm-large", 8 / 255, 8.8 / 255, 0.0),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_a_row_of_certified_training_has_its_authors_recipe(name):
    config, attack = config_of(name), config_of(name).attack
    assert config.method == ("crown-ibp" if "crown" in name else "ibp")
    data, network, epsilon, radius, kappa = CERTIFIED[name]
    assert (config.data.name, config.model.name) == (data, network)
    assert (attack.norm, attack.epsilon) == ("linf", epsilon)
    np.testing.assert_allclose(attack.certified_scale * epsilon, radius)
    assert attack.certified_kappa == kappa
    assert attack.crown_ibp_beta == (1 if name == "cifar10_crown_ibp_2" else 0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.beta2) == (
        "adamw",
        0.9,
        0.999,
    )
    assert optimizer.weight_decay == 0
    # In updates for MNIST, and in passes over the images for CIFAR-10.
    unit = config.updates if data == "mnist" else 3200
    parts = (*optimizer.turns, attack.certified_warmup, attack.certified_rampup)
    if data == "mnist":
        assert (config.updates, config.batch_size) == (60_000, 100)
        assert (config.data.pad, config.data.flip) == (0, False)
        assert config.model.mean == (0.0,)
        expected = 15_000, 25_000, 2_000, 10_000
    else:
        assert (config.updates, config.batch_size) == (3200 * 48, 1024)
        assert (config.data.pad, config.data.flip) == (4, True)
        assert config.model.mean == (0.4914, 0.4822, 0.4465)
        expected = 2600, 3040, 320, 1600
    np.testing.assert_allclose(np.array(parts) * unit, expected)
    rate = 1e-3 if data == "mnist" else 5e-4
    np.testing.assert_allclose(configured_learning_rate(config)(0), rate)
