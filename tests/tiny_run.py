"""A run on digits small enough for a test, and commands that make it."""

import json
import os
import pathlib
import subprocess
import sys

from freeadv_jax.recipes import digits

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "digits_free8.py"
FIELDS = {
    "updates": 64,
    "model.name": "small-cnn-bn",
    "batch_size": 64,
    "attack.replays": 2,
    "validation.every_passes": 0.5,
    "checkpoint.every_updates": 6,
    "logging.every_updates": 8,
    "evaluation.attacks": ("natural", "pgd-20"),
    "evaluation.examples": 64,
    "evaluation.batch_size": 40,
}


def tiny_config(**fields):
    """Return the configuration of FIELDS; `a__b=value` sets the field a.b."""
    config = digits()
    given = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(FIELDS | given)
    return config


def train_and_evaluate(workdir, **fields):
    """Make a whole run in this process, as the main job does; return its folder."""
    # Imported here, so that what only needs the command starts no devices.
    from freeadv_jax.data.dataset import load_dataset
    from freeadv_jax.runs.folder import open_run
    from freeadv_jax.runs.results import evaluate_run
    from freeadv_jax.runs.train import train_run

    config = tiny_config(**fields)
    dataset = load_dataset(**config.data)
    run = open_run(workdir, config, num_classes=10, image_shape=(8, 8, 1))
    state, training = train_run(run, dataset)
    evaluate_run(run, state.variables, dataset.test, training=training)
    return workdir


def command(workdir, **fields):
    """Return the command of the main job with the same configuration."""
    given = {name.replace("__", "."): value for name, value in fields.items()}
    flags = [f"--config.{name}={value}" for name, value in (FIELDS | given).items()]
    main = [sys.executable, "-m", "freeadv_jax.main"]
    return [*main, f"--config={CONFIG}", f"--workdir={workdir}", *flags]


def environment(*, devices):
    """Return the environment of the tests with this number of simulated CPU devices."""
    flags = os.environ["XLA_FLAGS"]
    flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def run_main(workdir, *, devices=1, **fields):
    """Run the command to its end, from the root of the project."""
    return subprocess.run(
        command(workdir, **fields),
        cwd=ROOT,
        env=environment(devices=devices),
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(workdir):
    """Return the lines of metrics.jsonl without the seconds, which differ in each run."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in lines
    ]
