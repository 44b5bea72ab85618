"""Which model is better and why, in sentences made from the figures."""

import statistics

from freeadv_jax.analysis.comparison import threat, threat_text
from freeadv_jax.report.shown import Shown, hardest_attack
from freeadv_jax.report.table import interval_text, minutes_text, percent
from freeadv_jax.runs.results import WORST_CASE

_HOW = {
    "natural": "saw only the images as they are",
    "free": "saw attacked images at every update: each minibatch is replayed, and one "
    "backward pass improves both the weights and the attack (Free-m)",
    "pgd": "saw images attacked with several steps before every update (K-PGD), which "
    "costs as many more passes through the network",
    "fgsm-rs": "saw images attacked with one step from a random start (FGSM-RS)",
    "trades": "was taught to say the same of an image and of its attacked version "
    "(TRADES)",
}
_UNRANKED = (
    "These models cannot be ranked: no attack was made on all of them in the same way "
    "and on as many images. Evaluate them alike with python -m freeadv_jax.evaluate."
)


def verdict(shown: list[Shown]) -> list[str]:
    """A few sentences; the first is the headline."""
    attack = hardest_attack(shown)
    if attack is None:
        return [_UNRANKED]
    groups: dict[str, list[Shown]] = {}
    for run in shown:
        groups.setdefault(run.kind, []).append(run)
    ranked = sorted(groups.values(), key=lambda runs: -_mean(runs, attack))
    said = [_headline(ranked, attack), _robustness(ranked, attack)]
    said += [_natural(ranked), _why(ranked), _minutes(ranked), _trust(shown)]
    return [sentence for sentence in said if sentence]


def _headline(ranked, attack):
    best, *others = ranked
    if not others:
        return f"{best[0].kind} keeps {_share(best, attack)} right under attack."
    near = [runs[0].kind for runs in others if not _clear(best, runs, attack)]
    if not near:
        return f"{best[0].kind} is the most robust of these models."
    kinds = f"{', '.join([best[0].kind, *near[:-1]])} and {near[-1]}"
    if len(near) == len(others):
        return f"{kinds} are equally robust, up to chance."
    return f"{kinds} are the most robust of these models, too close to tell apart."


def _robustness(ranked, attack):
    config = ranked[0][0].config
    means = [
        f"{runs[0].kind} {_share(runs, attack)}{_uncertainty(runs, attack)}"
        for runs in ranked
    ]
    examples = ranked[0][0].rows[attack]["examples"]
    what = "All attacks together" if attack == WORST_CASE else f"The attack {attack}"
    return (
        f"{what} may change every image within {threat_text(**threat(config))} (pixels "
        f"range from 0 to 1). Of {examples:,} test images, attacked, still classified "
        f"right: {', '.join(means)}."
    )


def _natural(ranked):
    means = [f"{runs[0].kind} {_share(runs, 'natural')}" for runs in ranked]
    return f"Without an attack: {', '.join(means)}."


def _why(ranked):
    methods = dict.fromkeys(runs[0].config.method for runs in ranked)
    first = {
        method: next(r[0].kind for r in ranked if r[0].config.method == method)
        for method in methods
    }
    told = [f"{first[method]} {_HOW[method]}" for method in methods]
    return f"Why: in training {'; '.join(told)}."


def _minutes(ranked):
    told = []
    for runs in ranked:
        seconds = [
            run.results["training"]["seconds"]
            for run in runs
            if "seconds" in (run.results.get("training") or {})
        ]
        if seconds:
            text = minutes_text(statistics.mean(seconds), digits=2)
            told.append(f"{runs[0].kind} {text} minutes")
    return f"Training took: {', '.join(told)}." if told else ""


def _trust(shown):
    suspicious = [
        f"{run.label} ({name})"
        for run in shown
        for name, flag in (run.results.get("red_flags") or {}).get("flags", {}).items()
        if flag["suspicious"]
    ]
    if suspicious:
        return (
            f"Careful: suspicious signs at {', '.join(suspicious)}; see the red flags."
        )
    if all("red_flags" in run.results for run in shown):
        return "No red flag speaks against these figures."
    return "Red flags were not looked for on every model."


def _clear(runs, others, attack):
    """Whether the intervals, or two deviations around the means, leave a gap."""
    return _bounds(runs, attack)[0] > _bounds(others, attack)[1]


def _bounds(runs, attack):
    if len(runs) == 1:
        return runs[0].rows[attack]["interval"]
    spread = 2 * statistics.stdev(run.rows[attack]["accuracy"] for run in runs)
    return _mean(runs, attack) - spread, _mean(runs, attack) + spread


def _mean(runs, attack):
    return statistics.mean(run.rows[attack]["accuracy"] for run in runs)


def _share(runs, attack):
    return f"{percent(_mean(runs, attack))} %"


def _uncertainty(runs, attack):
    if len(runs) > 1:
        deviation = statistics.stdev(run.rows[attack]["accuracy"] for run in runs)
        return f" (± {percent(deviation)} over {len(runs)} runs)"
    return f" (95 % interval {interval_text(runs[0].rows[attack]['interval'])})"
