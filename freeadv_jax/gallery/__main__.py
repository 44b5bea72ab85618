"""Show on one page how defences fall: attacked plainly, and attacked by what was made for them.

    python -m freeadv_jax.gallery [--data=DIR] [--workdir=runs/gallery]
        [--only=NAME,NAME] [--out=FILE] [--examples=100]

Each defence is trained, attacked by plain PGD-20, asked the questions of the red flags, and
attacked by what broke it. The images are those of CIFAR-10 where --data names the folder of
its files, and scikit-learn's digits without it. Defences with a generative model always take
the digits. A finished defence is kept in --workdir: the same command goes on after an
interruption.
"""

from freeadv_jax.analysis.plotting import new_figure
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.files import (
    local_path,
    read_json,
    sole_writer,
    whole_file,
    write_json,
)
from freeadv_jax.gallery.defences import DEFENCES
from freeadv_jax.gallery.page import render
from freeadv_jax.gallery.row import make_row, read_row, save_row
from freeadv_jax.gallery.task import Task
from freeadv_jax.progress import Progress


def main(argv):
    given = _parser().parse_args(argv[1:])
    names = given.only.split(",") if given.only else list(DEFENCES)
    for name in names:
        require_choice("--only", name, DEFENCES)
    new_figure(1, 1)  # Fails early if matplotlib is not installed.
    workdir = local_path(given.workdir)
    out = local_path(given.out) if given.out else workdir / "gallery.html"
    settings = _settings(given)
    tasks = _tasks(settings["data"], given, workdir / "networks")
    workdir.mkdir(parents=True, exist_ok=True)
    keep_compiled(workdir / "rows")
    with sole_writer(workdir):
        _check_settings(workdir, settings)
        rows = _rows(names, tasks, given, workdir / "rows")
        text = render(rows)
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as partial:
            partial.write_text(text, encoding="utf-8")
    say(f"written to {out} ({len(text.encode()) / 1e6:.2f} MB)")


def finished_rows(argv):
    """Return the rows of all finished defences of a command, and its settings."""
    given = _parser().parse_args(argv[1:])
    folder = local_path(given.workdir) / "rows"
    rows = [row for name in DEFENCES if (row := read_row(name, folder))]
    return rows, _settings(given)


def _settings(given):
    return {
        "data": "cifar10" if given.data else "digits",
        "examples": given.examples,
        "flagged": given.flagged,
        "seed": given.seed,
    }


def _tasks(data, given, folder):
    """Return the tasks by their data: the one asked for first, and the digits."""
    return {
        name: Task.load(name, given.data, folder=folder, seed=given.seed)
        for name in dict.fromkeys((data, "digits"))
    }


def _rows(names, tasks, given, folder):
    """Return the rows of all finished defences, after making those of `names`."""
    finished = {name: read_row(name, folder) for name in DEFENCES}
    missing = [name for name in names if finished[name] is None]
    if len(missing) < len(names):
        say(
            f"{len(names) - len(missing)} of {len(names)} defences are kept in {folder}"
        )
    progress = Progress("gallery", total=len(missing), unit="defences", write=say)
    if missing:
        progress.show(0)
    for number, name in enumerate(missing):
        defence = DEFENCES[name]
        task = tasks[defence.data] if defence.data else next(iter(tasks.values()))

        def tell(what, name=name):
            say(f"{name}: {what}")

        row = make_row(
            defence,
            task,
            examples=given.examples,
            flagged=given.flagged,
            tell=tell,
        )
        save_row(row, folder)
        finished[name] = row
        say(f"{name}: {_line(row.record)}")
        progress.show(number + 1)
    return [row for row in finished.values() if row]


def _line(record):
    figures = ", ".join(
        f"{name} {record[name]:.1%}" for name in ("natural", "naive", "adaptive")
    )
    return f"{figures}; flags raised: {', '.join(record['flags']) or 'none'}"


def _check_settings(workdir, settings):
    """Raise InputError where the folder holds a gallery with other settings."""
    path = workdir / "gallery.json"
    if not path.exists():
        write_json(path, settings)
        return
    found = read_json(path)
    if found != settings:
        before = ", ".join(f"{name} {value}" for name, value in found.items())
        raise InputError(
            f"{workdir} holds a gallery with {before}: give the same settings, or "
            "another --workdir"
        )


def _parser():
    parser = Parser("freeadv_jax.gallery", __doc__)
    parser.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="the folder of CIFAR-10's files; default: none, the digits are taken",
    )
    parser.add_argument(
        "--workdir",
        default="runs/gallery",
        metavar="DIR",
        help="the folder that keeps networks and finished defences",
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="the page to write; default: gallery.html in --workdir",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help=f"defences with commas between them, of {', '.join(DEFENCES)}; default: all",
    )
    parser.add_argument(
        "--examples", type=count, default=100, help="test images to attack"
    )
    parser.add_argument(
        "--flagged",
        type=count,
        default=40,
        help="the first of them, on which red flags are raised",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the seed of all random choices",
    )
    return parser


def run():
    """Run the command."""
    run_command(main)


if __name__ == "__main__":
    run()
