"""Train a model, evaluate its robustness and write results.json.

    freeadv-train --config=digits_free8 [--workdir=DIR] [--config.FIELD=VALUE ...]

`python -m freeadv_jax.main` is the same command. The same command again continues a run
that was cut off. With --multihost the process is one of several that train together;
where they cannot find each other through their cluster, --coordinator=HOST:PORT,
--num_processes=N and --process_id=I say how. Numbers may be written 8/255, and lists
with commas: --config.evaluation.attacks=natural,pgd-20.
"""

import argparse
import pathlib

from freeadv_jax.command import Parser, processes_of, run_command
from freeadv_jax.config import (
    FIELDS,
    field_names,
    set_from_text,
    unknown_field,
    validate,
    without_effect,
)
from freeadv_jax.config_files import find_config, read_config
from freeadv_jax.console import quoted, say, warn
from freeadv_jax.devices.processes import is_first, start
from freeadv_jax.errors import InputError

_METAVARS = {bool: "true|false", int: "N", float: "NUMBER", str: "TEXT", tuple: "A,B"}


def main(argv):
    config, given = _parse(argv[1:])
    start(**processes_of(given))
    if (ignored := without_effect(config, given.fields)) and is_first():
        warn(f"fields without effect: {', '.join(ignored)}")
    workdir = given.workdir
    # Imported here, so that a mistyped flag is answered at once.
    from freeadv_jax.data.dataset import load_dataset
    from freeadv_jax.devices.compilation import keep_compiled
    from freeadv_jax.devices.parallel import check_batch_size
    from freeadv_jax.devices.processes import agreement, require_same
    from freeadv_jax.files import machine_folder, sole_writer
    from freeadv_jax.runs.build import network_title, parameter_shapes
    from freeadv_jax.runs.folder import open_run, saved_updates
    from freeadv_jax.runs.load import initial_variables
    from freeadv_jax.runs.provenance import devices_text
    from freeadv_jax.runs.results import configured_attacks, evaluate_run, table
    from freeadv_jax.runs.train import train_run

    require_same(f"{workdir}\n{config.to_json()}", "--config or --workdir")
    with agreement():
        dataset = load_dataset(**config.data)
        of_model = {
            "num_classes": len(dataset.class_names),
            "image_shape": dataset.image_shape,
        }
        # Mistakes are reported before anything is written.
        configured_attacks(
            config, config.evaluation.attacks, num_classes=of_model["num_classes"]
        )
        check_batch_size(config.batch_size)
        dataset.steps_per_pass(config.batch_size)
        # A run that continues has its own weights.
        begins = not saved_updates(workdir, config)
        variables = initial_variables(config, **of_model) if begins else None
    training_images = dataset.steps_per_pass(1)
    extra_images = dataset.extra_images if config.data.extra else 0
    require_same(
        f"{training_images} {extra_images}",
        "the number of training images they can read",
    )
    run = open_run(
        workdir,
        config,
        **of_model,
        class_names=dataset.class_names,
        training_images=training_images,
        extra_images=extra_images,
    )
    params = parameter_shapes(run)
    updates, devices = f"{config.updates:,} updates", devices_text()
    say(
        f"training {network_title(config, params)} for {updates} on "
        f"{training_images:,} images, on {devices}"
    )
    keep_compiled(machine_folder(run.workdir))
    with sole_writer(run.workdir):
        state, training = train_run(run, dataset, variables=variables)
        results = evaluate_run(run, state.variables, dataset.test, training=training)
    print(table(results))
    print(f"written to {run.workdir / 'results.json'}")
    print(
        f"evaluate with more attacks: freeadv-evaluate --workdir={quoted(run.workdir)}"
    )
    print(
        f"compare models: freeadv-report {quoted(run.workdir)} [OTHER ...] --out=report.html"
    )


def _parse(arguments):
    """Return the configuration and the options that the command line asks for."""
    given, rest = (parser := _parser()).parse_known_args(arguments)
    if rest:
        kind, dot, field = rest[0].lstrip("-").partition("=")[0].partition(".")
        if dot and kind in ("config", "noconfig"):
            raise InputError(unknown_field(field))
        raise parser.unknown(rest[0])
    path = find_config(given.config)
    config = read_config(path)
    texts = {name: text for name, text in vars(given).items() if name in field_names()}
    for name, text in texts.items():
        set_from_text(config, name, text)
    validate(config)
    given.fields = list(texts)
    given.workdir = given.workdir or pathlib.Path("runs") / path.stem
    return config, given


def _parser():
    parser = Parser("freeadv_jax.main", __doc__)
    parser.usage = "%(prog)s --config=NAME [options] [--config.FIELD=VALUE ...]"
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="NAME",
        help="a configuration by name, such as digits_free8, or a file of one",
    )
    add("--workdir", metavar="DIR", help="the run folder; default: runs/NAME")
    parser.add_processes("train")
    group = parser.add_argument_group(
        "fields of the configuration",
        "The defaults are those of base_config(); a configuration file may set others.",
    )
    for field in FIELDS:
        boolean = {"nargs": "?", "const": "true"} if field.kind is bool else {}
        # Absent where not given: the default is that of the configuration file.
        group.add_argument(
            f"--config.{field.name}",
            dest=field.name,
            default=argparse.SUPPRESS,
            metavar=_METAVARS[field.kind],
            help=_help_text(field).replace("%", "%%"),
            **boolean,
        )
        if field.kind is bool:
            group.add_argument(
                f"--noconfig.{field.name}",
                dest=field.name,
                default=argparse.SUPPRESS,
                action="store_const",
                const="false",
                help=argparse.SUPPRESS,
            )
    return parser


def _help_text(field):
    parts = [field.meaning, field.allowed.text]
    if field.only:
        parts.append(f"only with {field.only.text}")
    default = field.default_text or "none"
    return "; ".join(filter(None, [*parts, f"default: {default}"]))


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
