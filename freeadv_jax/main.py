"""The main job: train, evaluate, results.json.

    python -m freeadv_jax.main --config=configs/digits_free8.py [--workdir=DIR]
        [--config.FIELD=VALUE ...]

The same command again continues a run that was cut off. With --multihost it is one of
several processes that train together; where they cannot find each other by their
cluster, --coordinator=HOST:PORT --num_processes=N --process_id=I say how.
"""

import pathlib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from freeadv_jax.command import run_command
from freeadv_jax.config import field_names, unknown_field, validate, wrong_type
from freeadv_jax.devices.processes import start
from freeadv_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_MULTIHOST = flags.DEFINE_boolean(
    "multihost", False, "One of several processes that train together."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process, where no cluster says it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them, from 0.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<name of the config file>."
)


def main(argv):
    if {"--help", "-h"} & set(argv):
        fields = "".join(f"\n    {name}" for name in field_names())
        print(f"{__doc__}\nFields, explained in freeadv_jax/config.py:{fields}")
        return
    config, workdir = _parse(argv)
    validate(config)
    start(
        multihost=_MULTIHOST.value,
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
    )
    # Imported here, so that a mistyped flag is answered at once.
    from freeadv_jax.data.dataset import load_dataset
    from freeadv_jax.devices.compilation import keep_compiled
    from freeadv_jax.devices.parallel import check_batch_size
    from freeadv_jax.devices.processes import agreement, require_same
    from freeadv_jax.files import sole_writer
    from freeadv_jax.runs.folder import open_run
    from freeadv_jax.runs.results import configured_attacks, evaluate_run, table
    from freeadv_jax.runs.train import train

    require_same(f"{workdir}\n{config.to_json()}", "--config or --workdir")
    with agreement():
        dataset = load_dataset(**config.data)
        num_classes = len(dataset.class_names)
        # Before anything is written.
        configured_attacks(config, config.evaluation.attacks, num_classes=num_classes)
        check_batch_size(config.batch_size)
        dataset.steps_per_pass(config.batch_size)
    training_images = dataset.steps_per_pass(1)
    require_same(str(training_images), "the number of training images they can read")
    run = open_run(
        workdir,
        config,
        num_classes=num_classes,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        training_images=training_images,
    )
    keep_compiled(run.workdir)
    with sole_writer(run.workdir):
        state, training = train(run, dataset)
        results = evaluate_run(run, state.variables, dataset.test, training=training)
    print(table(results))
    print(f"written to {run.workdir / 'results.json'}")


def _parse(argv):
    """The configuration and the folder that the command line asks for."""
    for argument in argv[1:]:
        field = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if field and field[1] not in field_names():
            raise InputError(unknown_field(field[1]))
    try:
        rest = flags.FLAGS(argv)[1:]
        config = _CONFIG.value
        # Why a file could not be read, it says only when something is asked of it.
        getattr(config, "to_dict", None)
    except Exception as fault:  # A config file may raise anything.
        raise InputError(_one_line(fault)) from fault
    if rest:
        raise InputError(f"argument {rest[0]!r} is unknown; flags begin with --")
    if not _CONFIG.present:
        raise InputError("--config is missing: give a file of configs/")
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{name}: get_config() must return the ConfigDict of base_config(), "
            f"not {type(config).__name__}"
        )
    return config, _WORKDIR.value or pathlib.Path("runs") / pathlib.Path(name).stem


def _one_line(fault):
    """What was wrong on the command line or, where not there, in the config file."""
    text = str(fault).strip()
    if field := re.search(r'[Kk]ey "([\w.]+)" does not exist', text):
        return unknown_field(field[1])
    if field := re.match(r"flag --config\.([\w.]+)=(.*?): ", text):
        return wrong_type(field[1], field[2])
    if isinstance(fault, flags.UnrecognizedFlagError):
        return (
            f"{text}; allowed: --config, --config.FIELD, --workdir, --multihost, "
            "--coordinator, --num_processes, --process_id"
        )
    if reason := re.search(r"\[Errno \d+\] (.*)", text):
        return f"--config cannot be read: {reason[1]}; give a file of configs/"
    if text.startswith("flag --config="):
        return f"the file of --config fails: {text.splitlines()[-1]}"  # A traceback's.
    if isinstance(fault, flags.Error):
        return " ".join(text.split())
    kind = type(fault).__name__
    return f"the file of --config fails: {kind}: {' '.join(text.split())}"


if __name__ == "__main__":
    run_command(main)
