"""The plots of a report: <svg> elements with captions."""

import dataclasses
import re

import numpy as np

from freeadv_jax.analysis.plotting import (
    INK,
    SERIES,
    as_svg,
    colour_and_marker,
    new_figure,
)
from freeadv_jax.attacks.robustness import VALIDATION_ATTACK, epsilon_text
from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.intervals import wilson
from freeadv_jax.report.certified_tables import shares_by_epsilon
from freeadv_jax.report.class_tables import class_names, robust_images
from freeadv_jax.report.reported import (
    ReportedModel,
    first_of_each_kind,
    strongest_attack,
)
from freeadv_jax.training.alignment import ALIGNMENT

# Inches: three plots fit side by side on a desktop, and one fits a phone.
_SIZE = (3.9, 2.9)
# A data set with more classes shows the least and the most robust ones.
_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Plot:
    """An <svg> element with the caption below it, which says what to look for."""

    title: str
    svg: str
    caption: str


# Title, kind of line in metrics.jsonl, field, unit, scale and caption.
_PANELS = (
    (
        "Training loss",
        "train",
        "loss",
        "mean loss of the training batches",
        1,
        (
            "A lower loss is a better fit. Adversarial training fits attacked images, which "
            "is harder: its loss stays higher, and that is no fault."
        ),
    ),
    (
        "Natural accuracy",
        "validation",
        "natural",
        "percent of held-out images",
        100,
        (
            "On images held out of the training, without an attack. The distance between "
            "the curves is the cost of adversarial training."
        ),
    ),
    (
        "Robust accuracy",
        "validation",
        VALIDATION_ATTACK,
        "percent under PGD-10",
        100,
        (
            "On the same held-out images, attacked. A curve that falls to zero while the "
            "training loss falls is catastrophic overfitting."
        ),
    ),
    (
        "Alignment of gradients",
        "train",
        ALIGNMENT,
        "mean cosine of two input gradients",
        1,
        (
            "Before and after a step of the attack. Where it falls, the loss bends inside the "
            "step, and catastrophic overfitting is near. A dotted line is an alarm."
        ),
    ),
)


def training_curves(models: list[ReportedModel]) -> list[Plot]:
    """Return loss, natural and robust validation accuracy and the alignment of gradients.

    Each is against updates and against minutes, as far as the models measured it.
    """
    plots = []
    for against in ("updates", "minutes"):
        for title, kind, name, unit, scale, caption in _PANELS:
            lines = [
                (model, *_curve(model, kind, name, against))
                for model in models
                if any(name in line for line in model.metrics_of(kind))
            ]
            if not lines:
                continue
            figure = new_figure(*_SIZE)
            axes = figure.subplots()
            for model, x, y in lines:
                axes.plot(x, scale * y, **_style(model, models), markevery=_every(x))
            axes.set(xlabel=against, ylabel=unit, xlim=(0, None))
            axes.set_ylim(0, 100) if scale == 100 else axes.set_ylim(0, None)
            _legend(axes, [model for model, *_ in lines])
            if name == ALIGNMENT:
                axes.set_ylim(min(0, *(y.min() for *_, y in lines)), 1)
                for model, *_ in lines:
                    for alarm in _curve(model, "alarm", name, against)[0]:
                        colour = _style(model, models)["color"]
                        axes.axvline(alarm, color=colour, linestyle=":")
            ends = ", ".join(
                f"{model.label} {scale * y[-1]:.3g}" for model, _, y in lines
            )
            description = f"At the end: {ends}."
            plots.append(
                _plot(f"{title} against {against}", figure, description, caption)
            )
    return plots


def robustness_curves(models: list[ReportedModel]) -> list[Plot]:
    """Return accuracy by epsilon and by attack steps, as far as it was measured."""
    if not all(model.measured for model in models):
        return [plot for plot in (_red_flag_curve(models),) if plot]
    epsilon = models[0].model.threat["epsilon"]
    curves = [model.measured.by_epsilon for model in models]
    plots = [_epsilon_plot(models, curves, epsilon)]
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for model in models:
        _with_interval(axes, model, models, model.measured.by_steps)
    axes.set(xlabel="steps of PGD", ylabel="percent correct", ylim=(0, 100))
    axes.set_xscale("log")
    counts = list(models[0].measured.by_steps)
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    _legend(axes, models)
    ends = ", ".join(
        f"{model.label} {100 * model.measured.by_steps[counts[-1]].mean():.1f} percent"
        for model in models
    )
    plots.append(
        _plot(
            "Accuracy against the steps of the attack",
            figure,
            f"After {counts[-1]} steps: {ends}.",
            f"Within epsilon {epsilon_text(epsilon)}. More steps break more images at first. "
            "Where the curve is flat, a longer attack would find nothing more and the "
            "figure can be trusted.",
        )
    )
    return plots


def sandwich_plots(models: list[ReportedModel]) -> list[Plot]:
    """Return certified, open and broken images by epsilon, a plot for each kind."""
    plots = []
    for model in first_of_each_kind(models):
        shares = shares_by_epsilon(model)
        if not shares:
            continue
        scale, label = _epsilon_axis(model.model.threat)
        figure = new_figure(*_SIZE)
        axes = figure.subplots()
        draw_sandwich(axes, shares, SERIES[model.place % len(SERIES)], x_scale=scale)
        axes.set(xlabel=label)
        axes.legend(fontsize=8)
        description = "; ".join(
            f"{epsilon_text(radius)}: "
            + ", ".join(f"{100 * share:.0f} {part}" for part, share in parts.items())
            for radius, parts in shares.items()
        )
        plots.append(
            _plot(
                f"{model.label}: certified, open, broken",
                figure,
                f"Percent of images by epsilon. {description}.",
                "Below the lower line a proof says that no attack succeeds, above the upper "
                "line one did. Robust accuracy lies between them.",
            )
        )
    return plots


def draw_sandwich(axes, shares: dict, colour: str, *, x_scale: float = 1) -> None:
    """Draw the shares of certified, open and broken images by epsilon, one on another."""
    x = [x_scale * radius for radius in shares]
    certified = np.array([100 * parts["certified"] for parts in shares.values()])
    open_ = np.array([100 * parts["open"] for parts in shares.values()])
    upper = certified + open_
    layers = {"certified": (0, certified, 0.75), "open": (certified, upper, 0.25)}
    for name, (low, high, alpha) in layers.items():
        axes.fill_between(
            x, low, high, color=colour, alpha=alpha, linewidth=0, label=name
        )
    axes.fill_between(x, upper, 100, color=INK, alpha=0.06, linewidth=0, label="broken")
    for line, marker in ((certified, "o"), (upper, "v")):
        axes.plot(x, line, color=colour, marker=marker, linewidth=1)
    axes.set(ylabel="percent of images", ylim=(0, 100), xlim=(0, max(x)))


def class_bars(models: list[ReportedModel]) -> list[Plot]:
    """Return natural and robust accuracy of the classes, a plot for each kind."""
    comparison = strongest_attack(models)
    plots = []
    for model in first_of_each_kind(models):
        found = robust_images(model, comparison)
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
        names = [class_names(model)[label].replace("_", " ") for label in chosen]
        percents = [[100 * share for share in shares[label]] for label in chosen]
        description = "; ".join(
            f"{name} {natural:.0f} and {robust:.0f}"
            for name, (natural, robust) in zip(names, percents)
        )
        colour = SERIES[model.place % len(SERIES)]
        plots.append(
            _plot(
                f"{model.label}: class by class",
                _bars(names, percents, colour),
                f"Percent correct without an attack and attacked: {description}.",
                f"{which}, {len(labels):,} images. The frame is natural accuracy, the "
                "filled bar the accuracy under attack. The emptier the frames, the less "
                "robust the model.",
            )
        )
    return plots


def _bars(names, percents, colour):
    figure = new_figure(_SIZE[0], 0.9 + 0.23 * len(names))
    axes = figure.subplots()
    rows = np.arange(len(names))
    natural, robust = zip(*percents)
    axes.barh(
        rows,
        natural,
        color="none",
        edgecolor=colour,
        linewidth=1.2,
        label="natural",
    )
    axes.barh(rows, robust, color=colour, height=0.5, label="attacked")
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(False, axis="y")
    axes.set(xlim=(0, 100), xlabel="percent correct")
    figure.legend(loc="outside lower right", ncols=2)
    return figure


def _red_flag_curve(models):
    """The accuracy by epsilon that the evaluation measured for its red flags."""
    curves = []
    for model in models:
        flags = (model.results.get("red_flags") or {}).get("flags", {})
        if "epsilon curve" not in flags:
            return None
        curve = flags["epsilon curve"]["accuracy"]
        examples = model.results["red_flags"]["examples"]
        curves.append(
            {
                float(radius): np.arange(examples) < round(share * examples)
                for radius, share in curve.items()
            }
        )
    return _epsilon_plot(models, curves, models[0].model.threat["epsilon"])


def _epsilon_plot(models, curves, epsilon):
    scale, label = _epsilon_axis(models[0].model.threat)
    figure = new_figure(*_SIZE)
    axes = figure.subplots()
    for model, curve in zip(models, curves):
        _with_interval(axes, model, models, curve, x_scale=scale)
    axes.axvline(scale * epsilon, color=INK, linestyle=":", linewidth=1)
    axes.annotate(
        "trained for",
        (scale * epsilon, 100),
        xytext=(3, -2),
        textcoords="offset points",
        fontsize=8,
        verticalalignment="top",
    )
    axes.set(
        xlabel=label,
        ylabel="percent correct",
        ylim=(0, 100),
        xlim=(0, None),
    )
    _legend(axes, models)
    description = "; ".join(
        f"{model.label}: "
        + ", ".join(
            f"{100 * robust.mean():.0f} at {epsilon_text(radius)}"
            for radius, robust in curve.items()
        )
        for model, curve in zip(models, curves)
    )
    return _plot(
        "Accuracy against epsilon",
        figure,
        f"Percent correct by epsilon. {description}.",
        "How much an image may be changed, and how many images the model still "
        "classifies correctly. A robust model falls slowly. Every model must reach zero, "
        "or the attack fails.",
    )


def _epsilon_axis(threat):
    """The factor of an axis of epsilon, and its label."""
    in_levels = epsilon_text(threat["epsilon"]).endswith("/255")
    unit = "in pixel levels of 255" if in_levels else "pixels range from 0 to 1"
    label = (
        f"epsilon, {unit if threat['norm'] == 'linf' else NORMS[threat['norm']].title}"
    )
    return (255 if in_levels else 1), label


def _with_interval(axes, model, models, curve, x_scale=1):
    """A line through the accuracies on a pale band of their 95 % intervals."""
    x = [x_scale * key for key in curve]
    percents = [100 * robust.mean() for robust in curve.values()]
    bounds = [wilson(int(robust.sum()), len(robust)) for robust in curve.values()]
    style = _style(model, models)
    axes.plot(x, percents, **style)
    low, high = (100 * np.array(bound) for bound in zip(*bounds))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _curve(model, kind, name, against):
    lines = [line for line in model.metrics_of(kind) if name in line]
    updates = np.array([line["updates"] for line in lines], float)
    values = np.array([line[name] for line in lines], float)
    if against == "updates":
        return updates, values
    timed = [line for line in model.metrics_of("train") if "seconds" in line]
    known = [0.0, *(line["updates"] for line in timed)]
    seconds = [0.0, *(line["seconds"] for line in timed)]
    return np.interp(updates, known, seconds) / 60, values


def _style(model, models):
    """The colour of the model's kind; thinner lines where a kind has several seeds."""
    alike = sum(other.kind == model.kind for other in models)
    style = colour_and_marker(model.place)
    return style | ({"linewidth": 0.8, "markersize": 2.5} if alike > 1 else {})


def _every(x):
    """Markers on at most a dozen points."""
    return max(1, len(x) // 12)


def _legend(axes, models):
    """One entry for each kind."""
    handles = {}
    for model, line in zip(models, axes.get_lines()):
        handles.setdefault(model.kind, line)
    axes.legend(handles.values(), handles.keys(), fontsize=8)


def _plot(title, figure, description, caption):
    name = re.sub(r"\W+", "-", title.lower()).strip("-")
    return Plot(title, as_svg(figure, name, f"{title}. {description}"), caption)
