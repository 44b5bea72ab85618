"""benchmarks.ablation: its variants, its folders and its gains."""

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.ablation import BASE, VARIANTS, accuracies, main, summary, variation
from configs import cifar10_free8
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json

OPTIONS = {
    "size": "full",
    "network": None,
    "updates": None,
    "data": "data",
    "attacks": ["pgd-20"],
    "examples": 50,
    "part": "validation",
    "runs": pathlib.Path("runs"),
}


def varied(variant=BASE, seed=0, **options):
    return variation(variant, seed, SimpleNamespace(**OPTIONS | options))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_differs_from_free_8_only_in_its_fields(variant):
    config, _ = varied(variant, seed=2)
    expected = cifar10_free8.get_config()
    expected.update_from_flattened_dict(
        {
            **VARIANTS[variant],
            "seed": 2,
            "data.dir": "data",
            "data.validation_examples": 5000,
            "evaluation.attacks": ("natural", "pgd-20"),
            "evaluation.examples": 50,
        }
    )
    assert config.to_dict() == expected.to_dict()


def test_network_and_updates_default_to_those_of_the_size():
    assert varied()[0].model.name == "wrn-32-10-madry"
    config, _ = varied(network="wrn-16-2", updates=300, size="scaled-down")
    assert (config.model.name, config.updates) == ("wrn-16-2", 300)
    assert config.batch_size == 32


def test_no_two_trainings_share_a_folder():
    folders = [
        varied(seed=seed, network=network, updates=updates, part=part)[1]
        for seed in (0, 1)
        for network in (None, "wrn-16-2")
        for updates in (None, 300)
        for part in ("validation", "test")
    ]
    folders += [varied(variant)[1] for variant in VARIANTS if variant != BASE]
    assert len(set(folders)) == len(folders) == 16 + len(VARIANTS) - 1


def test_the_worst_case_covers_the_requested_attacks_and_images():
    robust = {
        "natural": np.array([1, 1, 1, 0, 0], bool),
        "pgd-20": np.array([0, 1, 1, 0, 0], bool),
        "cw-20": np.array([1, 0, 1, 0, 0], bool),
        "square": np.zeros(5, bool),
    }
    found = accuracies(robust, ("natural", "pgd-20", "cw-20"), 4)
    expected = {"natural": 0.75, "pgd-20": 0.5, "cw-20": 0.5, "worst-case": 0.25}
    assert found == expected
    alone = accuracies(robust, ("natural", "cw-20"), 5)
    assert alone == {"natural": 0.6, "cw-20": 0.4}
    assert list(alone) == ["natural", "cw-20"]


def test_gains_are_taken_seed_by_seed():
    row = summary([0.3, 0.5, 0.4], [0.2, 0.3, 0.1])
    assert row["mean"] == pytest.approx(0.4)
    assert row["deviation"] == pytest.approx(0.1)
    # The gains are 0.1, 0.2 and 0.3.
    assert row["gain"] == pytest.approx({"mean": 0.2, "deviation": 0.1})


def test_one_seed_is_refused():
    with pytest.raises(
        InputError, match="--seeds: '1': must be a whole number, 2 or more"
    ):
        main(["ablation", "--data=data", "--seeds=1"])


def test_natural_accuracy_alone_is_refused():
    with pytest.raises(InputError, match="--attacks natural: name an attack"):
        main(["ablation", "--data=data", "--attacks", "natural"])


def test_the_table_and_the_record_show_the_gain_in_the_last_attack(
    tmp_path, monkeypatch, capsys
):
    robust = {BASE: (0.2, 0.25), "random start": (0.24, 0.27)}

    def outcome(variant, seed, options):
        accuracy = {"natural": 0.5, "pgd-20": 0.4, "apgd-t": robust[variant][seed]}
        return {"accuracy": accuracy, "flop": 1e12, "seconds": 1.0}

    monkeypatch.setattr(ablation, "outcome", outcome)
    out = tmp_path / "ablation.json"
    command = ["ablation", "--data=data", "--seeds=2", f"--out={out}"]
    main([*command, "--variants", "random start", "--attacks", "pgd-20", "apgd-t"])
    _, line, _ = capsys.readouterr().out.splitlines()
    assert line.startswith("random start ")
    assert line.endswith("natural  50.0  robust  25.5 ± 2.1  gain +3.0 ± 1.4")
    rows = read_json(out)["results"]["variants"]
    assert rows["random start"]["fields"] == {"attack.start": "random"}
    assert rows["random start"]["accuracy"]["apgd-t"]["values"] == [0.24, 0.27]
