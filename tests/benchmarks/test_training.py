"""benchmarks.training: its counts, its ratios, and its contenders."""

import itertools
import json
import math
import time

import jax
import numpy as np
import pytest

from benchmarks import training
from benchmarks.contender import Contender, Worker, configured_run
from benchmarks.readme import results
from benchmarks.scaling import forward_flop
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError


def multiplications(*layers):
    """Count the multiplications of layers (taps, channels in, channels out, pixels a
    side, number).
    """
    return sum(
        taps * inputs * outputs * side**2 * number
        for taps, inputs, outputs, side, number in layers
    )


BY_HAND = {
    "preact-resnet-18": multiplications(
        (9, 3, 64, 32, 1),
        (9, 64, 64, 32, 4),
        *(
            layer
            for width, side in ((128, 16), (256, 8), (512, 4))
            for layer in (
                (9, width // 2, width, side, 1),
                (1, width // 2, width, side, 1),
                (9, width, width, side, 3),
            )
        ),
        (1, 512, 10, 1, 1),
    ),
    # The shortcuts have no weights.
    "wrn-32-10-madry": multiplications(
        (9, 3, 16, 32, 1),
        *(
            layer
            for inputs, width, side in ((16, 160, 32), (160, 320, 16), (320, 640, 8))
            for layer in ((9, inputs, width, side, 1), (9, width, width, side, 9))
        ),
        (1, 640, 10, 1, 1),
    ),
}


@pytest.mark.parametrize(
    ("network", "billions"), [("preact-resnet-18", 0.5554), ("wrn-32-10-madry", 6.6301)]
)
def test_forward_flop_are_two_for_each_multiplication_counted_by_hand(
    network, billions
):
    run = configured_run(network, "natural")
    assert forward_flop(run) == 2 * BY_HAND[network]
    assert BY_HAND[network] / 1e9 == pytest.approx(billions, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("natural", 3),
        ("free-8", 3),
        ("7-pgd", 7 * 2 + 3),
        ("1-pgd", 2 + 3),
        # One attack step before the update.
        ("fgsm-rs", 2 + 3),
    ],
)
def test_an_update_costs_three_forward_passes_and_two_for_each_attack_step(
    method, passes
):
    config = configured_run("wrn-10-1", method).config
    assert training.update_flop(config, 100) == 100 * passes


@pytest.mark.parametrize("steps", [1, 10])
def test_an_update_of_trades_trains_on_two_batches_after_its_attack(steps):
    config = configured_run("wrn-10-1", "trades").config
    config.attack.steps = steps
    # Natural logits (1), the steps (2 each), and the update on natural and on attacked
    # images (3 each).
    assert training.update_flop(config, 100) == 100 * (1 + 2 * steps + 2 * 3)


@pytest.mark.parametrize(
    ("network", "images", "shape", "classes", "batch"),
    [
        ("wrn-10-1", None, (32, 32, 3), 10, 128),
        ("small-cnn-bn", None, (32, 32, 3), 10, 128),
        ("resnet-50", None, (224, 224, 3), 1000, 256),
        ("small-cnn", None, (8, 8, 1), 10, 128),
        ("small-cnn", "mnist", (28, 28, 1), 10, 128),
    ],
)
def test_a_network_has_its_usual_images_unless_others_are_named(
    network, images, shape, classes, batch
):
    run = configured_run(network, "free-8", images=images)
    assert (run.image_shape, run.num_classes) == (shape, classes)
    assert run.config.batch_size == batch
    # The recipe of digits sets it.
    assert run.config.attack.straight_through == (network == "small-cnn")


def test_digits_are_real_and_random_pixels_take_the_place_of_mnist():
    digits, mnist = (
        training.training_images(
            configured_run("small-cnn", "natural", images=images, batch_size=16), ""
        )
        for images in ("digits", "mnist")
    )
    expected = load_arrays("digits", "", validation_examples=0).train
    np.testing.assert_array_equal(digits.images, expected.images)
    np.testing.assert_array_equal(digits.labels, expected.labels)
    assert mnist.images.shape == (training.GENERATED_BATCHES * 16, 28, 28, 1)
    assert set(mnist.labels.tolist()) == set(range(10))


def test_contenders_train_on_the_named_images(monkeypatch, tmp_path):
    class Asked(Exception):
        pass

    def measure(setting, data):
        raise Asked(setting)

    monkeypatch.setattr(training, "measure", measure)
    named = ["--networks=small-cnn", "--images=mnist", "--batch_size=16"]
    with pytest.raises(Asked) as asked:
        training.main(["training", *named, f"--runs={tmp_path}"])
    (setting,) = asked.value.args
    assert (setting["images"], setting["generated"]) == ("mnist", True)
    run = training.configured_setting(setting, "free-8")
    assert (run.image_shape, run.config.batch_size) == ((28, 28, 1), 16)
    assert run.config.attack.replays == 8


@pytest.mark.skipif(onednn.unavailable() is not None, reason="oneDNN is unavailable")
@pytest.mark.parametrize(
    ("images", "choice", "kernels"),
    [
        ("mnist", "auto", "onednn"),
        ("mnist", "xla", "xla"),
        ("digits", "auto", "xla"),
        ("digits", "onednn", "onednn"),
    ],
)
def test_our_side_has_the_kernels_of_a_training_by_the_recipe(images, choice, kernels):
    setting = {"network": "small-cnn", "dtype": "float32", "batch": 128}
    setting |= {"images": images, "convolutions": choice}
    contender = training.build("ours", "", setting, "natural")
    assert contender.costs()["convolutions"] == kernels
    assert ("__onednn$convolution" in contender.program()) == (kernels == "onednn")


def test_utilisation_is_a_share_of_the_rate_of_a_matrix_product():
    # 8 images of 3 GFLOP in 2 seconds, where the product runs at 48 GFLOP/s.
    assert training.utilisation(flop=8 * 3e9, seconds=2.0, rate=48e9) == 0.25


def test_ratios_are_medians_of_rounds_not_ratios_of_medians():
    # In the middle round other work slowed both down.
    rows = {
        "natural": {
            "ours": {"all_seconds_per_update": [1.0, 10.0, 2.0]},
            "pytorch": {"all_seconds_per_update": [2.0, 30.0, 2.0]},
        }
    }
    assert training.ratios(rows) == {"natural": {"pytorch / ours": 2.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "free"], "unknown method 'free'; allowed: free-<m>, <K>-pgd"),
        (["--networks", "wrn-10-1"], "wrn-10-1 needs --data"),
        (["--networks", "vgg", "--data=x"], "model 'vgg' is unknown"),
        (["--networks", "wrn-10-1", "--peer", "--data=x"], "--peer is for 1 device"),
        (["--batch_size=9"], "batch_size must be a multiple of 8"),
    ],
)
def test_impossible_settings_are_refused_before_any_measurement(
    arguments, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        training.main(["training", f"--runs={tmp_path}", *arguments])
    assert not any(tmp_path.iterdir())


def test_a_method_that_pytorch_lacks_is_refused_with_a_peer(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    given = ["--networks", "small-cnn", "--peer", "--methods", "trades"]
    with pytest.raises(InputError, match="know only natural, free, pgd"):
        training.main(["training", f"--runs={tmp_path}", *given])


def test_with_avx2_an_update_takes_at_most_1_1_times_as_long_as_in_pytorch():
    record = results("training_avx2")
    assert list(record) == ["preact-resnet-18 float32", "wrn-16-4 float32"]
    for result in record.values():
        assert list(result["ratios"]) == ["natural", "free-8", "7-pgd"]
        for ratio in result["ratios"].values():
            assert ratio["pytorch / ours"] >= 1 / 1.1


@pytest.mark.parametrize(
    ("record", "images", "natural"),
    [
        ("training_avx512_small_cnn", "digits", 1.0),
        # A tenth slower than PyTorch in natural training.
        ("training_avx512_small_cnn_mnist", "mnist", 0.85),
    ],
)
def test_with_avx512_the_small_cnn_is_faster_than_pytorchs_in_free_m(
    record, images, natural
):
    (result,) = results(record).values()
    assert result["setting"]["network"] == "small-cnn"
    assert result["setting"]["images"] == images
    assert result["ratios"]["free-8"]["pytorch / ours"] > 1
    assert result["ratios"]["natural"]["pytorch / ours"] > natural


def test_a_finished_network_is_measured_again_only_with_other_settings_or_code(
    tmp_path, monkeypatch, capsys
):
    measured = []

    def measure(setting, data):
        measured.append((setting["network"], setting["rounds"]))
        row = {
            "seconds_per_update": 0.5,
            "images_per_second": 256.0,
            "utilisation": 0.25,
            "input_wait_fraction": 0.0,
            "compile_seconds": 1.0,
            "peak_memory": {"bytes": 10**9, "of": "device"},
        }
        return {
            "product": {"size": 2048, "flop_per_second": 1e12},
            "methods": {"natural": {"ours": row}},
            "ratios": {"natural": {}},
        }

    monkeypatch.setattr(training, "measure", measure)
    out = tmp_path / "out.json"

    def run(*networks, rounds):
        training.main(
            [
                "training",
                "--data=unread",
                "--networks",
                *networks,
                "--methods=natural",
                "--dtypes=float32",
                f"--rounds={rounds}",
                f"--runs={tmp_path / 'runs'}",
                f"--out={out}",
            ]
        )

    run("wrn-10-1", rounds=1)
    run("wrn-10-1", "small-cnn", rounds=1)
    assert measured == [("wrn-10-1", 1), ("small-cnn", 1)]
    results = json.loads(out.read_text())["results"]
    assert list(results) == ["wrn-10-1 float32", "small-cnn float32"]
    assert "256.0       25.0%" in capsys.readouterr().out
    run("wrn-10-1", rounds=2)
    assert measured[2:] == [("wrn-10-1", 2)]
    monkeypatch.setattr(training, "measured_on", lambda packages: {"commit": "other"})
    run("wrn-10-1", rounds=2)
    assert measured[3:] == [("wrn-10-1", 2)]


def test_memory_is_that_of_the_device_or_else_of_the_process():
    row = {"process_memory": {"bytes": 3, "of": "process"}}
    program = {"peak_memory": {"bytes": 2, "of": "compiled program"}}
    assert training.memory(row | program) == 3
    assert training.memory(row | {"peak_memory": {"bytes": 2, "of": "device"}}) == 2


def test_a_compiled_model_that_pytorch_did_not_use_counts_as_eager():
    row = {"compile_seconds": 7.4}
    assert training.compilation(row) == "7 s"
    assert (
        training.compilation(row | {"torch.compile": "used: 1 s, eager 2 s"}) == "7 s"
    )
    assert training.compilation(row | {"torch.compile": "not used: 2 s"}) == "eager"


def sleepy(updates):
    """Return a contender that waits 30 ms for each batch and computes for 10 ms."""

    def batches():
        for number in itertools.count():
            time.sleep(0.03)
            yield number

    def call(number):
        time.sleep(0.01)
        return {"loss": float(number)}

    memory = {"bytes": 1, "of": "device"}
    return Contender(call, batches(), updates, 0.5, lambda: memory, {"said": "so"})


def test_a_turn_reports_seconds_of_an_update_and_the_share_of_waiting():
    contender = sleepy(updates=2)
    turn = contender.take(5)
    assert 0.02 <= turn["seconds_per_update"] < 0.06
    assert 0.5 < turn["input_wait_fraction"] < 0.9
    # 41 calls of 40 ms, fewer on a busy machine.
    assert 1 < contender.calls_in(1.6) <= 41
    assert contender.calls_in(1e-3) == 1
    assert contender.calls_in(1e-3, updates=7) == 4


def test_metrics_are_read_while_the_next_call_runs_and_no_later():
    happened = []

    class Loss(int):
        def __float__(self):
            happened.append(f"read {self}")
            return 0.0

    def call(number):
        happened.append(f"call {number}")
        return {"loss": Loss(number)}

    Contender(call, itertools.count(), 1, 0.5, dict).take(3)
    expected = ["call 0", "call 1", "read 0", "call 2", "read 1", "read 2"]
    assert happened == expected


def test_a_worker_answers_for_its_contender_and_has_its_own_memory():
    ballast = np.ones(2**27)  # A gigabyte in this process but not in the worker.
    worker = Worker(sleepy, 1)
    try:
        assert worker.ask("take", 1)["seconds_per_update"] >= 0.04
        costs = worker.ask("costs")
    finally:
        worker.close()
    assert costs["said"] == "so"
    assert costs["compile_seconds"] == 0.5
    assert 1e7 < costs["process_memory"]["bytes"] < ballast.nbytes


def test_a_failed_worker_ends_the_program_with_its_status():
    with pytest.raises(SystemExit, match="a contender ended with status 1"):
        Worker(math.sqrt, -1)
