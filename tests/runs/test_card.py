"""The model card and the entry for RobustBench say what the records say, and no more."""

import numpy as np
import pytest
import yaml
from tiny_run import tiny_config

from freeadv_jax.runs.card import (
    Facts,
    card_files,
    model_card,
    parameter_count,
    robustbench_entry,
)

DESCRIPTION = {
    "model": "small-cnn-bn",
    "num_classes": 10,
    "image_shape": [32, 32, 3],
    "threat": {"norm": "linf", "epsilon": 8 / 255},
    "updates": 64,
    "freeadv_jax": "0.2",
}


def row(accuracy, *, epsilon=8 / 255, norm="linf", examples=1000):
    return {
        "accuracy": accuracy,
        "interval": [accuracy - 0.01, accuracy + 0.02],
        "correct": round(accuracy * examples),
        "examples": examples,
        "attack": {"norm": norm, "epsilon": epsilon},
    }


RESULTS = {
    "evaluation": {
        "natural": row(0.8734, epsilon=0.0),
        "worst-case": row(0.4),
        "autoattack": row(0.4321, examples=500),
        "autoattack@l2-0.5": row(0.6, epsilon=0.5, norm="l2"),
    },
    "red_flags": {
        "flags": {
            "losses": {"suspicious": False, "text": "45.1 % and 44.9 %"},
            "gradients": {"suspicious": True, "text": "12 of 200 are zero"},
        }
    },
    "corruptions": {
        "mean_error": 0.25,
        "interval": [0.24, 0.26],
        "examples": 1000,
        "natural": None,
        "kinds": {
            "fog": {
                "mean_error": 0.3,
                "severities": {str(n): {"accuracy": 0.9 - n / 10} for n in range(1, 6)},
            }
        },
        "images": {"library": "a library", "version": "1.2", "seed": 0},
    },
    "environment": {
        "versions": {"jax": "0.10.2", "numpy": None},
        "device_kind": "cpu",
        "commit": None,
    },
}


def facts(**changes):
    config = tiny_config(data__name="cifar10", data__dir="/home/me/cifar10")
    given = {"description": DESCRIPTION, "parameters": 12_345, "license": "mit"}
    return Facts(**given | {"results": RESULTS, "config": config} | changes)


def head(card):
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_the_head_is_yaml_in_the_form_of_the_hub():
    found = head(model_card(facts()))
    (model,) = found.pop("model-index")
    assert found == {
        "license": "mit",
        "library_name": "freeadv_jax",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "flax", "jax"],
        "metrics": ["accuracy"],
        "datasets": ["cifar10"],
    }
    assert model["name"] == "small-cnn-bn, Free-2 on cifar10"
    (result,) = model["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "cifar10", "type": "cifar10"}
    first, *_, last = result["metrics"]
    assert first == {"type": "accuracy", "name": "accuracy, natural", "value": 87.34}
    assert last["name"] == "accuracy, worst-case"


def test_the_card_shows_data_threat_recipe_figures_flags_and_corruptions():
    card = model_card(facts())
    for line in (
        "| data | cifar10 |",
        "| threat | linf epsilon 8/255 |",
        "| recipe | Free-2, 64 updates of 64 images, seed 0 |",
        "| `optimizer.momentum` | 0.9 |",
        "| natural | – | 87.34% | 86.34% to 89.34% | 1,000 |",
        "| autoattack | linf epsilon 8/255 | 43.21% | 42.21% to 45.21% | 500 |",
        "| autoattack@l2-0.5 | l2 epsilon 0.5 | 60.00% | 59.00% to 62.00% | 1,000 |",
        "- losses: ok. 45.1 % and 44.9 %",
        "- gradients: **suspicious**. 12 of 200 are zero",
        "| fog | 30.00% | 20.00% | 30.00% | 40.00% | 50.00% | 60.00% |",
        "| jax | 0.10.2 |",
        "| device | cpu |",
    ):
        assert f"\n{line}\n" in card
    assert "1 of 2 red flags are raised" in card
    assert "Mean error 25.00% (95 % interval 24.00% to 26.00%) on 1,000 test" in card
    assert "made by a library 1.2" in card
    assert "not yet run" not in card


def test_the_card_says_what_a_shortened_attack_may_have_missed():
    audit = {"audited": 17, "broken": 1, "accuracy_at_least": 0.3512}
    rows = {"autoattack-quick": row(0.42) | {"audit": audit}}
    card = model_card(facts(results=RESULTS | {"evaluation": rows}))
    assert (
        "autoattack-quick: an audit of 17 survivors broke 1; the standard version leaves "
        "at least 35.12% (95 %)." in card.splitlines()
    )


def test_the_card_names_no_folder_of_this_machine():
    config = tiny_config(
        data__name="npz:/home/me/mine.npz",
        data__extra="npz:/home/me/more.npz",
        init="/home/me/weights.pt",
    )
    for given in (facts(), facts(config=config)):
        assert "/home/me" not in "".join(card_files(given).values())
    assert "| `init` | weights.pt |" in model_card(facts(config=config))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, False), ({"init": "x.pt"}, None), ({"data__extra": "npz:more.npz"}, True)],
)
def test_additional_data_is_unknown_for_weights_from_elsewhere(fields, expected):
    given = facts(config=tiny_config(**fields))
    assert robustbench_entry(given)["additional_data"] is expected


def test_what_was_not_evaluated_is_not_yet_run():
    bare = facts(results={}, config=None, license="unknown")
    card = model_card(bare)
    assert "model-index" not in head(card)
    assert head(card)["license"] == "unknown"
    for line in (
        "| natural | – | not yet run |  |  |",
        "| autoattack | linf epsilon 8/255 | not yet run |  |  |",
        "Signs that the gradients are masked: not yet run.",
        "Error under noise, blur, weather and compression: not yet run.",
        "| data | not recorded |",
        "| recipe | not recorded |",
        "The licence of these weights was not stated.",
    ):
        assert f"\n{line}\n" in card
    entry = robustbench_entry(bare)
    assert entry["clean_acc"] == entry["autoattack_acc"] == "not yet run"
    assert entry["unreliable"] == "not yet run"
    assert entry["additional_data"] is None
    assert "corruptions_acc" not in entry


def test_the_entry_has_the_form_of_robustbench():
    assert robustbench_entry(facts()) == {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "",
        "architecture": "small-cnn-bn",
        "eps": "8/255",
        "clean_acc": "87.34",
        "reported": "",
        "autoattack_acc": "43.21",
        "corruptions_acc": "75.00",
        "footnote": "Test images: natural 1,000, AutoAttack 500, corruptions 1,000.",
        "unreliable": True,
    }


def test_weights_of_the_zoo_show_their_file_and_the_published_figures_as_such():
    origin = {
        "name": "robustbench:cifar10/Linf/Wong2020Fast",
        "sha256": "abc",
        "data": "cifar10",
        "published": {
            "natural": 83.34,
            "autoattack": 43.21,
            "paper": "https://arxiv.org/abs/2001.03994",
            "source": "robustbench 1.1.1",
        },
    }
    given = facts(description=DESCRIPTION | {"origin": origin}, results={}, config=None)
    card = model_card(given)
    assert "| SHA-256 of the file | abc |" in card
    assert (
        "Published, and not measured here: natural 83.34 %, autoattack 43.21 % "
        "([paper](https://arxiv.org/abs/2001.03994); robustbench 1.1.1)."
    ) in card
    assert robustbench_entry(given)["clean_acc"] == "not yet run"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_threat_of_weights_without_one_is_that_of_all_attacks(norm):
    rows = {"natural": row(0.9, epsilon=0.0), "autoattack@x": row(0.5, norm=norm)}
    description = DESCRIPTION | {"threat": None}
    given = facts(description=description, results={"evaluation": rows}, config=None)
    assert given.threat == {"norm": norm, "epsilon": 8 / 255}
    assert robustbench_entry(given)["autoattack_acc"] == "50.00"
    rows["autoattack@y"] = row(0.4, epsilon=0.5, norm="l2")
    assert given.threat is None
    assert robustbench_entry(given)["autoattack_acc"] == "not yet run"


def test_parameters_are_counted_without_running_averages():
    arrays = {"params/kernel": np.zeros((3, 4)), "batch_stats/mean": np.zeros(5)}
    assert parameter_count(arrays) == 12
    assert parameter_count({"0/w": np.zeros(7)}) == 7
