"""The plots of a report, each an <svg> element with a caption."""

import dataclasses
import re

import numpy as np

from freeadv_jax.analysis.comparison import number, threat
from freeadv_jax.analysis.plotting import (
    INK,
    SERIES,
    as_svg,
    colour_and_marker,
    new_figure,
)
from freeadv_jax.intervals import wilson
from freeadv_jax.report.detail_tables import class_names, standing_by_class
from freeadv_jax.report.shown import Shown, first_of_each_kind, hardest_attack

# Inches, so that three fit beside one another and one fits a phone.
_SIZE = (3.9, 2.9)
# Of each end, where a data set has more classes than fit.
_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Plot:
    """An <svg> element, and below it what it shows and what to look for."""

    title: str
    svg: str
    caption: str


def training_curves(shown: list[Shown]) -> list[Plot]:
    """Loss, natural and robust validation accuracy, against updates and minutes."""
    panels = (
        ("Training loss", "train", "loss", "mean loss of the training batches", 1),
        (
            "Natural accuracy",
            "validation",
            "natural",
            "percent of held-out images",
            100,
        ),
        ("Robust accuracy", "validation", "pgd-10", "percent under PGD-10", 100),
    )
    captions = {
        "loss": "Lower is fitted better. Adversarial training fits attacked images, "
        "which is harder: its loss stays higher, and that is no fault.",
        "natural": "On images held out of the training, as they are. What adversarial "
        "training costs is the distance between the curves.",
        "pgd-10": "On the same held-out images, attacked. A curve that falls to zero "
        "while the training loss falls is catastrophic overfitting.",
    }
    plots = []
    for against in ("updates", "minutes"):
        for title, kind, name, unit, scale in panels:
            lines = [
                (run, *_curve(run, kind, name, against))
                for run in shown
                if any(name in line for line in run.of_kind(kind))
            ]
            if not lines:
                continue
            figure = new_figure(*_SIZE)
            axes = figure.subplots()
            for run, x, y in lines:
                axes.plot(x, scale * y, **_style(run, shown), markevery=_every(x))
            axes.set(xlabel=against, ylabel=unit, xlim=(0, None))
            axes.set_ylim(0, 100) if scale == 100 else axes.set_ylim(0, None)
            _legend(axes, [run for run, *_ in lines])
            ends = ", ".join(f"{run.label} {scale * y[-1]:.3g}" for run, _, y in lines)
            full = f"{title} against {against}"
            plots.append(_plot(full, figure, f"At the end: {ends}.", captions[name]))
    return plots


def robustness_curves(shown: list[Shown]) -> list[Plot]:
    """Accuracy against epsilon and against the steps of the attack, where measured."""
    if not all(run.measured for run in shown):
        return [plot for plot in (_flag_curve(shown),) if plot]
    epsilon = shown[0].config.attack.epsilon
    plots = [_epsilon_plot(shown, [run.measured.by_epsilon for run in shown], epsilon)]
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for run in shown:
        _with_interval(axes, run, shown, run.measured.by_steps)
    axes.set(xlabel="steps of PGD", ylabel="percent right", ylim=(0, 100))
    axes.set_xscale("log")
    counts = list(shown[0].measured.by_steps)
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    _legend(axes, shown)
    ends = ", ".join(
        f"{run.label} {100 * run.measured.by_steps[counts[-1]].mean():.1f} percent"
        for run in shown
    )
    plots.append(
        _plot(
            "Accuracy against the steps of the attack",
            figure,
            f"After {counts[-1]} steps: {ends}.",
            f"Within epsilon {number(epsilon)}. More steps break more images, at first; "
            "where the curve is flat a longer attack would find nothing more, and the "
            "figure can be trusted.",
        )
    )
    return plots


def class_bars(shown: list[Shown]) -> list[Plot]:
    """For each kind of model natural and robust accuracy of the classes."""
    attack = hardest_attack(shown)
    plots = []
    for run in first_of_each_kind(shown):
        found = standing_by_class(run, attack)
        if found is None:
            continue
        labels, natural, robust = found
        present = np.unique(labels)
        shares = {
            label: (natural[labels == label].mean(), robust[labels == label].mean())
            for label in present
        }
        chosen, which = list(present), "The classes"
        if len(present) > _CLASSES:
            ranked = sorted(present, key=lambda label: shares[label][::-1])
            chosen = ranked[: _CLASSES // 2] + ranked[-_CLASSES // 2 :]
            which = f"The {_CLASSES // 2} least and the {_CLASSES // 2} most robust"
        names = [class_names(run)[label].replace("_", " ") for label in chosen]
        heights = [100 * share for label in chosen for share in shares[label]]
        figure = new_figure(_SIZE[0], 0.9 + 0.23 * len(chosen))
        axes = figure.subplots()
        colour = SERIES[run.place % len(SERIES)]
        rows = np.arange(len(chosen))
        axes.barh(
            rows,
            heights[::2],
            color="none",
            edgecolor=colour,
            linewidth=1.2,
            label="as they are",
        )
        axes.barh(rows, heights[1::2], color=colour, height=0.5, label="attacked")
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(False, axis="y")
        axes.set(xlim=(0, 100), xlabel="percent right")
        figure.legend(loc="outside lower right", ncols=2)
        said = "; ".join(
            f"{name} {natural:.0f} and {robust:.0f}"
            for name, natural, robust in zip(names, heights[::2], heights[1::2])
        )
        plots.append(
            _plot(
                f"{run.label}: class by class",
                figure,
                f"Percent right as they are and attacked: {said}.",
                f"{which}: the frame is accuracy without attack, the filled bar what "
                "is left of it under attack. The emptier the frames, the less robust.",
            )
        )
    return plots


def _flag_curve(shown):
    """The curve over epsilon that the evaluation made among its red flags."""
    curves = []
    for run in shown:
        flags = (run.results.get("red_flags") or {}).get("flags", {})
        if "epsilon curve" not in flags:
            return None
        curve = flags["epsilon curve"]["accuracy"]
        examples = run.results["red_flags"]["examples"]
        curves.append(
            {
                float(radius): np.arange(examples) < round(share * examples)
                for radius, share in curve.items()
            }
        )
    return _epsilon_plot(shown, curves, shown[0].config.attack.epsilon)


def _epsilon_plot(shown, curves, epsilon):
    in_levels = number(epsilon).endswith("/255")
    scale = 255 if in_levels else 1
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for run, curve in zip(shown, curves):
        _with_interval(axes, run, shown, curve, x_scale=scale)
    axes.axvline(scale * epsilon, color=INK, linestyle=":", linewidth=1)
    axes.annotate(
        "trained for",
        (scale * epsilon, 100),
        xytext=(3, -2),
        textcoords="offset points",
        fontsize=8,
        verticalalignment="top",
    )
    unit = "of 255 levels" if in_levels else "of the range of a pixel"
    norm = threat(shown[0].config)["norm"]
    axes.set(
        xlabel=f"epsilon, {unit}" if norm == "linf" else "epsilon, L2",
        ylabel="percent right",
        ylim=(0, 100),
        xlim=(0, None),
    )
    _legend(axes, shown)
    said = "; ".join(
        f"{run.label}: "
        + ", ".join(
            f"{100 * standing.mean():.0f} at {number(radius)}"
            for radius, standing in curve.items()
        )
        for run, curve in zip(shown, curves)
    )
    return _plot(
        "Accuracy against epsilon",
        figure,
        f"Percent right by epsilon. {said}.",
        "How far an image may be changed, against what the model still gets right. A "
        "robust model falls slowly; every model must reach zero, or the attack fails.",
    )


def _with_interval(axes, run, shown, curve, x_scale=1):
    """A line through accuracies, and pale around it their 95 % intervals."""
    x = [x_scale * key for key in curve]
    shares = [100 * standing.mean() for standing in curve.values()]
    bounds = [wilson(int(standing.sum()), len(standing)) for standing in curve.values()]
    style = _style(run, shown)
    axes.plot(x, shares, **style)
    low, high = (100 * np.array(bound) for bound in zip(*bounds))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _curve(run, kind, name, against):
    lines = [line for line in run.of_kind(kind) if name in line]
    updates = np.array([line["updates"] for line in lines], float)
    values = np.array([line[name] for line in lines], float)
    if against == "updates":
        return updates, values
    timed = [line for line in run.of_kind("train") if "seconds" in line]
    known = [0.0, *(line["updates"] for line in timed)]
    seconds = [0.0, *(line["seconds"] for line in timed)]
    return np.interp(updates, known, seconds) / 60, values


def _style(run, shown):
    """The colour of its kind; the seeds of a kind thinner."""
    alike = sum(other.kind == run.kind for other in shown)
    style = colour_and_marker(run.place)
    return style | ({"linewidth": 0.8, "markersize": 2.5} if alike > 1 else {})


def _every(x):
    """Markers on at most a dozen points."""
    return max(1, len(x) // 12)


def _legend(axes, runs):
    """A line a kind."""
    handles = {}
    for run, line in zip(runs, axes.get_lines()):
        handles.setdefault(run.kind, line)
    axes.legend(handles.values(), handles.keys(), fontsize=8)


def _plot(title, figure, said, caption):
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return Plot(title, as_svg(figure, name, f"{title}. {said}"), caption)
