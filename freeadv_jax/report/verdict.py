"""The verdict of a report: which model is most robust and why, in a few sentences."""

import statistics

from freeadv_jax.analysis.comparison import threat_text
from freeadv_jax.attacks.robustness import WORST_CASE
from freeadv_jax.report.certified_tables import sandwiches_of
from freeadv_jax.report.reported import (
    NATURAL,
    Comparison,
    ReportedModel,
    attack_names,
    compare,
    compare_on_first,
    strongest_attack,
)
from freeadv_jax.report.table import interval_text, minutes_text, percent
from freeadv_jax.training.methods import METHODS

_UNRANKED = (
    "These models cannot be ranked: no attack was run on every model with the same "
    "settings and images. Evaluate them alike with python -m freeadv_jax.evaluate."
)


def verdict(models: list[ReportedModel]) -> list[str]:
    """Return a few sentences about the models; the first is the headline.

    The verdict goes by the strongest attack that was run on every model, on the images
    that all models share.
    """
    comparison = strongest_attack(models)
    if comparison is None:
        return [_UNRANKED]
    ranked = _kinds(models, comparison)
    sentences = [
        _headline(ranked),
        _robustness(ranked, comparison, models[0].model.threat),
        _natural(models, comparison),
        _not_compared(models, comparison),
        _methods(ranked),
        _minutes(ranked),
        _red_flags(models),
    ]
    return [sentence for sentence in sentences if sentence]


class _Kind:
    """Models that differ only in their seed, with their rows under one attack."""

    def __init__(self, models, rows):
        self.models, self.rows = models, rows
        self.name = models[0].kind
        self.accuracies = [row["accuracy"] for row in rows]
        self.mean = statistics.mean(self.accuracies)

    def bounds(self):
        """Return the 95 % interval of one model, or two deviations around the mean."""
        if len(self.rows) == 1:
            return self.rows[0]["interval"]
        spread = 2 * statistics.stdev(self.accuracies)
        return self.mean - spread, self.mean + spread

    def text(self):
        """Return the kind and its mean: Free-8 45.3 %."""
        return f"{self.name} {percent(self.mean)} %"

    def uncertainty(self):
        """How certain the mean is, in parentheses."""
        if len(self.rows) == 1:
            return f"(95 % interval {interval_text(self.rows[0]['interval'])})"
        deviation = statistics.stdev(self.accuracies)
        return f"(± {percent(deviation)} over {len(self.rows)} runs)"


def _kinds(models, comparison):
    """The kinds of the models, the most robust first."""
    groups: dict[str, list] = {}
    for model, row in zip(models, comparison.rows, strict=True):
        groups.setdefault(model.kind, []).append((model, row))
    kinds = [_Kind(*map(list, zip(*members))) for members in groups.values()]
    return sorted(kinds, key=lambda kind: -kind.mean)


def _headline(ranked):
    best, *others = ranked
    if not others:
        return f"{best.name} classifies {percent(best.mean)} % correctly under attack."
    close = [kind.name for kind in others if best.bounds()[0] <= kind.bounds()[1]]
    if not close:
        return f"{best.name} is the most robust of these models."
    names = f"{', '.join([best.name, *close[:-1]])} and {close[-1]}"
    if len(close) == len(others):
        return f"{names} are equally robust, up to chance."
    return f"{names} are the most robust of these models, too close to rank."


def _robustness(ranked, comparison, threat):
    together = comparison.attack == WORST_CASE
    subject = (
        "All attacks together"
        if together
        else f"The attack {_title(comparison.attack)}"
    )
    means = [f"{kind.text()} {kind.uncertainty()}" for kind in ranked]
    return (
        f"{subject} may change every image within {threat_text(**threat)} (pixels range "
        f"from 0 to 1). Of {comparison.examples:,} attacked test images, these percent "
        f"are still classified correctly: {', '.join(means)}."
    )


def _natural(models, comparison):
    """Natural accuracy on the images of the comparison, or on each model's own."""
    natural = compare_on_first(models, NATURAL, comparison.examples)
    rows = natural.rows if natural else [model.rows[NATURAL] for model in models]
    order = {kind.name: kind for kind in _kinds(models, comparison)}
    kinds = {
        kind.name: kind
        for kind in _kinds(models, Comparison(NATURAL, comparison.examples, rows))
    }
    means = [kinds[name].text() for name in order]
    return f"Without an attack: {', '.join(means)}."


def _not_compared(models, comparison):
    """Name the attacks that break more than the compared one, but not on all models."""
    stronger = []
    for model, compared in zip(models, comparison.rows, strict=True):
        for name in attack_names(models):
            other = model.rows.get(name)
            if other is None or name == NATURAL or compare(models, name):
                continue
            # On the same images where possible: fewer images may be harder ones.
            examples = min(other["examples"], comparison.examples)
            here = model.row_on_first(comparison.attack, examples) or compared
            other = model.row_on_first(name, examples) or other
            if other["accuracy"] < here["accuracy"]:
                stronger.append(
                    f"{_title(name)} leaves {model.label} {percent(other['accuracy'])} % "
                    f"of {other['examples']:,} images"
                )
    if not stronger:
        return ""
    return (
        f"Careful: {'; '.join(stronger)}. These attacks were not run on all models with "
        "the same settings and images, so the ranking leaves them out."
    )


def _methods(ranked):
    """How each method trains, where the configuration is known."""
    names: dict[str, str] = {}
    for kind in ranked:
        config = kind.models[0].config
        if config:
            names.setdefault(config.method, kind.name)
    reasons = [
        f"{name} {METHODS[method].description}" for method, name in names.items()
    ]
    return f"Why: in training {'; '.join(reasons)}." if reasons else ""


def _minutes(ranked):
    times = []
    for kind in ranked:
        seconds = [
            model.results["training"]["seconds"]
            for model in kind.models
            if "seconds" in (model.results.get("training") or {})
        ]
        if seconds:
            times.append(f"{kind.name} {_time(statistics.mean(seconds))}")
    return f"Training took: {', '.join(times)}." if times else ""


def _time(seconds):
    if round(seconds) < 120:
        return f"{round(seconds)} seconds"
    return f"{minutes_text(seconds, digits=2)} minutes"


def _red_flags(models):
    suspicious = [
        f"{model.label} ({name})"
        for model in models
        for name, flag in (model.results.get("red_flags") or {})
        .get("flags", {})
        .items()
        if flag["suspicious"]
    ]
    suspicious += [
        f"{model.label} (certified and broken)"
        for model in models
        if any(record["suspicious"] for record in sandwiches_of(model))
    ]
    if suspicious:
        return f"Careful: red flags for {', '.join(suspicious)}; see the table below."
    if all("red_flags" in model.results for model in models):
        return "No red flag speaks against these figures."
    return "Not every model was checked for red flags."


def _title(attack):
    return "AutoAttack" if attack == "autoattack" else attack
