"""The command that evaluates a trained model: its results, files, and bad input."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from corruption_files import write_corruptions
from tiny_run import ROOT, environment, tiny_config

import freeadv_jax
from freeadv_jax.attacks.named import QUICK
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError
from freeadv_jax.evaluate import main
from freeadv_jax.export import export_run
from freeadv_jax.files import sole_writer
from freeadv_jax.runs.folder import open_run, read_run
from freeadv_jax.runs.load import trained_state
from freeadv_jax.runs.results import evaluate_run
from freeadv_jax.runs.train import train_run

DIGITS = load_arrays("digits", "", validation_examples=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config = tiny_config(updates=128, evaluation__examples=48)
    run = open_run(workdir, config, num_classes=10, image_shape=(8, 8, 1))
    state, training = train_run(run, DIGITS)
    evaluate_run(run, state.variables, DIGITS.test, training=training)
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def call(*arguments):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main(["evaluate", "--no-red_flags", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, handler)


def results(folder, name="results"):
    return json.loads((folder / f"{name}.json").read_text())


def outcomes(folder, name="evaluation"):
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def read_variables(folder):
    return trained_state(read_run(folder), "last").variables


def content(folder):
    return {
        path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_rows_are_added_to_those_of_the_training(run, capsys):
    before = results(run)
    call(f"--workdir={run}", "--attacks=natural,cw-5", "--examples=48")
    after = results(run)
    assert after["training"] == before["training"]
    assert after["config"] == before["config"]
    assert after["evaluation"]["pgd-20"] == before["evaluation"]["pgd-20"]
    assert list(after["evaluation"]) == ["natural", "pgd-20", "cw-5", "worst-case"]
    row = after["evaluation"]["cw-5"]
    assert row["examples"] == 48
    assert outcomes(run)["cw-5"].sum() == row["correct"]
    shown = capsys.readouterr().out
    assert "95 % interval" in shown
    assert "programs compiled" in shown
    assert f"{row['accuracy']:.2%}" in shown


def test_command_opens_with_what_it_does_and_puts_epsilon_over_the_table(run, capsys):
    call(f"--workdir={run}", "--attacks=natural", "--examples=48", "--epsilon=8/255")
    first, *lines = capsys.readouterr().out.splitlines()
    size = sum(array.size for array in jax.tree.leaves(read_variables(run)["params"]))
    assert first == (
        f"evaluating small-cnn-bn ({size:,} parameters, Free-2 on digits with linf "
        "epsilon 0.2, update 128) on 48 images within linf epsilon 8/255, on 8 cpu devices"
    )
    assert "linf epsilon 0.2 (natural is the accuracy without an attack):" in lines


def test_library_call_gives_the_rows_and_the_table_of_the_command(run, capsys):
    names = "natural,pgd-20,cw-5"
    call(f"--workdir={run}", f"--attacks={names}", "--examples=48")
    printed = capsys.readouterr().out
    config = results(run)["config"]
    result = freeadv_jax.robust_accuracy(
        freeadv_jax.load(run),
        DIGITS.test.images[:48],
        DIGITS.test.labels[:48],
        epsilon=config["attack"]["epsilon"],
        step_size=config["evaluation"]["step_size"],
        seed=config["seed"],
        attacks=names,
        red_flags=False,
    )
    assert result.rows == results(run)["evaluation"]
    assert str(result) in printed
    for name in names.split(","):
        np.testing.assert_array_equal(result.robust[name], outcomes(run)[name])


def test_rows_of_another_epsilon_have_it_in_their_name(run):
    arguments = ("--attacks=natural,pgd-5", "--examples=32", "--norm=l2")
    call(f"--workdir={run}", *arguments, "--epsilon=1/2")
    row = results(run)["evaluation"]["pgd-5@l2-0.5"]
    attack = row["attack"]
    assert (attack["norm"], attack["epsilon"]) == ("l2", 0.5)
    assert attack["step_size"] == 0.125
    assert "pgd-20" in results(run)["evaluation"]


def test_certificates_of_another_epsilon_stand_beside_its_attacks(run, capsys):
    arguments = ("--attacks=natural,pgd-5,ibp,crown-ibp", "--examples=16")
    call(f"--workdir={run}", *arguments, "--epsilon=0.002")
    found = results(run)
    assert list(found["certified"]) == ["ibp@linf-0.002", "crown-ibp@linf-0.002"]
    both = found["sandwich@linf-0.002"]
    assert both["attacks"] == ["pgd-5@linf-0.002"]
    assert both["certified"] >= found["certified"]["ibp@linf-0.002"]["correct"]
    assert both["certified"] > 0 and both["violations"] == []
    natural, arrays = found["evaluation"]["natural"], outcomes(run)
    assert both["certified"] <= natural["correct"]
    certified = arrays["certified/crown-ibp@linf-0.002"]
    assert not (certified & ~arrays["pgd-5@linf-0.002"]).any()
    shown = capsys.readouterr().out
    assert "certified by ibp@linf-0.002" in shown
    assert f"within linf epsilon 0.002, of 16 images {both['certified']}" in shown


def test_quick_with_a_whole_audit_leaves_what_autoattack_leaves(run, capsys):
    arguments = f"--workdir={run}", "--examples=8", "--epsilon=0.1"
    call(*arguments, "--attacks=natural,autoattack,autoattack-quick", "--audit=all")
    rows, arrays = results(run)["evaluation"], outcomes(run)
    standard, quick = (f"{name}@linf-0.1" for name in ("autoattack", QUICK))
    np.testing.assert_array_equal(arrays[quick], arrays[standard])
    assert rows[quick]["audit"]["missed_at_most"] == 0
    assert rows[quick]["attack"]["audit"] == 1.0
    assert f"{quick}: an audit of " in capsys.readouterr().out
    # More images are added to the row; one with another audit is made again.
    more = (*arguments[::2], "--examples=12", f"--attacks={QUICK}")
    call(*more, "--audit=all")
    assert results(run)["evaluation"][quick]["audit"]["audited"] >= 0
    np.testing.assert_array_equal(outcomes(run)[quick][:8], arrays[standard])
    call(*more, "--audit=0.25")
    assert results(run)["evaluation"][quick]["attack"]["audit"] == 0.25


def test_best_checkpoint_has_its_own_files(run):
    before = results(run)
    call(f"--workdir={run}", "--attacks=natural", "--checkpoint=best")
    best = results(run, "results-best")
    assert best["evaluation"]["natural"]["examples"] == 450
    assert best["training"]["updates"] <= 128
    assert results(run) == before


def test_own_images_are_attacked_and_kept_on_request(run, tmp_path):
    images = DIGITS.test.images[:20] / np.float64(255)
    np.savez(tmp_path / "mine.npz", images=images, labels=DIGITS.test.labels[:20])
    call(
        f"--workdir={run}",
        f"--images={tmp_path / 'mine.npz'}",
        "--attacks=natural,pgd-20",
        "--save_images",
        "--batch_size=8",
    )
    arrays = outcomes(run / "mine")
    np.testing.assert_array_equal(arrays["pgd-20"], outcomes(run)["pgd-20"][:20])
    delta = arrays["pgd-20/images"] - images
    assert 0.1 < np.abs(delta).max() <= 0.2 + 1.2e-7


def test_two_models_cannot_share_a_folder_of_results(run, tmp_path):
    file, out = tmp_path / "mine.npz", tmp_path / "out"
    np.savez(file, images=DIGITS.test.images[:8], labels=DIGITS.test.labels[:8])
    arguments = (f"--images={file}", f"--out={out}", "--attacks=natural")
    call(f"--workdir={run}", *arguments)
    before = content(out)
    other = open_run(
        tmp_path / "other", tiny_config(seed=1), num_classes=10, image_shape=(8, 8, 1)
    )
    train_run(other, DIGITS)
    with pytest.raises(InputError, match="are of another model or other images"):
        call(f"--workdir={other.workdir}", *arguments)
    assert content(out) == before


def test_data_of_other_classes_is_refused(run):
    record = json.loads((run / "run.json").read_text())
    record["class_names"] = ["one", "two", "three", "four", "five", "six"]
    (run / "run.json").write_text(json.dumps(record))
    before = content(run)
    with pytest.raises(InputError) as refused:
        call(f"--workdir={run}", "--attacks=natural")
    assert str(refused.value) == (
        f"the data's classes are 0, 1, 2, 3, 4 and 5 more, but {run} was trained on one, "
        "two, three, four, five and 1 more"
    )
    assert content(run) == before


def test_run_in_use_by_another_process_is_refused(run):
    before = content(run)
    with (
        sole_writer(run),
        pytest.raises(InputError, match=f"{run} is in use: another process"),
    ):
        call(f"--workdir={run}", "--attacks=natural")
    assert content(run) == before
    call(f"--workdir={run}", "--attacks=natural", "--examples=48")


def test_exported_model_is_evaluated_without_a_run(run, tmp_path):
    pytest.importorskip("safetensors")
    export_run(run, tmp_path / "exported")
    np.savez(
        tmp_path / "mine.npz",
        images=DIGITS.test.images[:48],
        labels=DIGITS.test.labels[:48].astype(np.int64),
    )
    call(
        f"--workdir={tmp_path / 'exported'}",
        f"--images={tmp_path / 'mine.npz'}",
        f"--out={tmp_path / 'out'}",
        "--attacks=natural,pgd-20",
        "--step_size=0.05",
    )
    row = results(tmp_path / "out")["evaluation"]["pgd-20"]
    assert row["correct"] == results(run)["evaluation"]["pgd-20"]["correct"]
    assert results(tmp_path / "out")["model"]["threat"]["epsilon"] == 0.2


def test_exported_model_is_evaluated_on_a_named_data_set(run, tmp_path):
    pytest.importorskip("safetensors")
    exported = tmp_path / "exported"
    export_run(run, exported)
    with pytest.raises(InputError, match="give --images or --dataset"):
        call(f"--workdir={exported}", "--attacks=natural")
    with pytest.raises(InputError, match="--dataset goes with an exported model"):
        call(f"--workdir={run}", "--attacks=natural", "--dataset=digits")
    arguments = ("--attacks=natural,pgd-20", "--examples=48", "--step_size=0.05")
    call(f"--workdir={exported}", "--dataset=digits", *arguments)
    found, expected = (results(folder)["evaluation"] for folder in (exported, run))
    assert found["pgd-20"]["correct"] == expected["pgd-20"]["correct"]
    assert results(exported)["data"] == "digits"


def test_data_set_of_other_images_is_refused_for_an_exported_model(run, tmp_path):
    pytest.importorskip("safetensors")
    exported = tmp_path / "exported"
    export_run(run, exported)
    description = json.loads((exported / "model.json").read_text())
    images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 3
    np.savez(
        tmp_path / "other.npz",
        x_train=images,
        y_train=labels,
        x_test=images,
        y_test=labels,
    )
    with pytest.raises(InputError) as refused:
        call(f"--workdir={exported}", f"--dataset=npz:{tmp_path / 'other.npz'}")
    assert str(refused.value) == (
        f"npz:{tmp_path / 'other.npz'} has images (4, 4, 1) of 3 classes, and {exported} "
        f"takes (8, 8, 1) and has {description['num_classes']} classes"
    )


def test_corruptions_of_a_folder_stand_below_the_attacks(run, tmp_path, capsys):
    folder = write_corruptions(tmp_path / "c", DIGITS.test.images, DIGITS.test.labels)
    arguments = ("--attacks=natural", "--examples=48", f"--corruptions={folder}")
    call(f"--workdir={run}", *arguments)
    record = results(run)["corruptions"]
    assert record["examples"] == 48
    natural = results(run)["evaluation"]["natural"]
    assert record["natural"]["correct"] == natural["correct"]
    rows = record["kinds"]["fog"]["severities"]
    assert rows["5"]["correct"] == outcomes(run)["corruptions/fog/5"].sum()
    printed = capsys.readouterr().out
    assert f"corruptions: mean error {record['mean_error']:.2%}, " in printed
    # Another evaluation keeps them.
    call(f"--workdir={run}", "--attacks=fgsm", "--examples=48")
    assert results(run)["corruptions"] == record
    assert "corruptions: mean error" in capsys.readouterr().out


@pytest.mark.slow
def test_results_are_the_same_for_any_number_of_devices_and_batch_size(run):
    """This process has eight devices and another batch size."""
    arguments = ("--attacks=pgd-2-x3,square", "--examples=48")
    call(f"--workdir={run}", *arguments)
    here = outcomes(run)
    for devices in (1, 4):
        (run / "evaluation.npz").unlink()
        subprocess.run(
            [sys.executable, "-m", "freeadv_jax.evaluate", f"--workdir={run}"]
            + [*arguments, "--batch_size=12", "--no-red_flags"],
            cwd=ROOT,
            env=environment(devices=devices),
            check=True,
            capture_output=True,
        )
        for name in ("pgd-2-x3", "square"):
            np.testing.assert_array_equal(outcomes(run)[name], here[name])


@pytest.mark.thorough
def test_kills_at_any_moment_do_not_change_the_results(finished, tmp_path):
    attacks = "--attacks=natural,pgd-20-x3,apgd-ce,square,fab-t"
    whole = shutil.copytree(finished, tmp_path / "whole")
    call(f"--workdir={whole}", attacks)
    killed = shutil.copytree(finished, tmp_path / "killed")
    program = (
        "import freeadv_jax.runs.outcomes as outcomes, freeadv_jax.evaluate, sys;"
        "outcomes.SECONDS_BETWEEN_SAVES = 0.2;"
        f"freeadv_jax.evaluate.main(['evaluate', '--workdir={killed}', {attacks!r},"
        " '--no-red_flags'])"
    )
    rng = np.random.default_rng(0)
    kills = 0
    for seconds in (*rng.uniform(4, 12, 5), None):
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=environment(devices=1)
        )
        try:
            process.wait(seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert process.returncode == 0
    assert kills >= 3
    expected = outcomes(whole)
    for name, array in outcomes(killed).items():
        np.testing.assert_array_equal(array, expected[name])
    assert results(killed)["evaluation"] == results(whole)["evaluation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks=pdg-20"], "did you mean 'pgd-20'"),
        (["--attacks="], "allowed: natural"),
        (["--examples=0"], "a whole number above 0"),
        (["--examples=ten"], "a whole number above 0"),
        (["--epsilon=8"], "8 / 255"),
        (["--epsilon=0"], "above 0"),
        (["--epsilon=8/0"], "such as 8/255"),
        (["--norm=l2"], "--epsilon is missing"),
        (["--norm=l3"], "invalid choice: 'l3'"),
        (["--checkpoint=newest"], "invalid choice: 'newest'"),
        (["--example=5"], "option '--example' is unknown; did you mean '--examples'?"),
        (["--out=here"], "--out goes with --images"),
        (["--images=nowhere.npz"], "nowhere.npz does not exist"),
        (["--step_size=-1"], "above 0"),
        (["--epsilon=1e400"], "such as 8/255"),
        (["--workdir=az://bucket/run"], "az://bucket/run: must be a folder of this"),
        (["--images=mine.npz", "--out=gs:///x"], "must be gs://BUCKET/FOLDER"),
        (["--audit=0.1"], "audit is for autoattack-quick"),
        (["--attacks=autoattack-quick", "--audit=2"], "a share from 0 to 1"),
        (["--corruptions"], "images of 8 x 8 pixels and 1 channels: corruptions are"),
        (["--corruptions=nowhere"], "nowhere lacks gaussian_noise.npy, shot_noise"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_change_no_file(
    run, arguments, message
):
    before = content(run)
    with pytest.raises(InputError) as refused:
        call(f"--workdir={run}", *arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content(run) == before


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": RNG.random((3, 8, 8, 1))}, "with images and labels"),
        ({"images": RNG.random((3, 9, 8, 1)), "labels": np.arange(3)}, "[n, 8, 8, 1]"),
        ({"images": RNG.random((3, 8, 8, 1)) * 9, "labels": np.arange(3)}, "[0, 1]"),
        ({"images": RNG.random((3, 8, 8, 1)), "labels": np.arange(3) + 9}, "10 class"),
        ({"images": RNG.random((3, 8, 8, 1)), "labels": np.ones(3)}, "whole numbers"),
        ({"images": RNG.random((3, 8, 8, 1)), "labels": np.arange(2)}, "one label"),
        ({"images": RNG.random((0, 8, 8, 1)), "labels": np.arange(0)}, "at least one"),
    ],
)
def test_unusable_images_are_refused_in_one_line(run, tmp_path, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError) as refused:
        call(f"--workdir={run}", f"--images={tmp_path / 'mine.npz'}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_of_a_single_array_is_refused(run, tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((3, 8, 8, 1)))
    with pytest.raises(InputError, match="must be an .npz file with images and labels"):
        call(f"--workdir={run}", f"--images={tmp_path / 'mine.npy'}")


def test_results_of_a_run_are_not_replaced_by_results_on_other_images(run, tmp_path):
    images, labels = DIGITS.test.images[:8], DIGITS.test.labels[:8]
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    before = content(run)
    with pytest.raises(InputError, match="is a run: its own results would be lost"):
        call(f"--workdir={run}", f"--images={tmp_path / 'mine.npz'}", f"--out={run}")
    assert content(run) == before


def test_training_time_of_another_checkpoint_is_not_reported(run):
    before = results(run)
    before["training"]["updates"] = 64
    (run / "results.json").write_text(json.dumps(before))
    call(f"--workdir={run}", "--attacks=natural")
    assert results(run)["training"] == {"updates": 128}


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_file_that_is_no_archive_is_refused(run, tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(InputError, match="must be an .npz file with images and labels"):
        call(f"--workdir={run}", f"--images={tmp_path / 'mine.npz'}")


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        call(f"--workdir={tmp_path}")


def test_corrupt_state_file_is_refused_and_kept(run):
    (run / "evaluation.npz").write_bytes(b"PK\x03\x04 cut")
    before = content(run)
    with pytest.raises(InputError, match=r"evaluation.npz is damaged: .*start again"):
        call(f"--workdir={run}", "--attacks=natural")
    assert content(run) == before


def test_bad_input_ends_the_process_with_one_line_and_status_1(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "freeadv_jax.evaluate", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=environment(devices=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
