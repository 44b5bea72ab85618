"""Robust accuracy: the share of images a model classifies correctly under each attack.

`robust_accuracy` evaluates any model in one call. `Evaluation` is the part below it that
takes one attack at a time and can be interrupted: the command works with that.
"""

import dataclasses
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from freeadv_jax.attacks.audit import audit_text
from freeadv_jax.attacks.campaign import Campaign, Images, Work
from freeadv_jax.attacks.checks import check_logits, check_samples, check_threat
from freeadv_jax.attacks.draws import randomized
from freeadv_jax.attacks.ensemble import warn_of_few_classes
from freeadv_jax.attacks.kernels import are_random, kernels_for, traced_with
from freeadv_jax.attacks.named import QUICK, NamedAttack, attack_by_name
from freeadv_jax.attacks.red_flags import CHECKED_IMAGES, Flag, verdict_line
from freeadv_jax.attacks.red_flags import red_flags as find_red_flags
from freeadv_jax.attacks.runner import examples_of, images_of_stage
from freeadv_jax.attacks.sandwich import SANDWICH, sandwich_flags, sandwiches
from freeadv_jax.attacks.threat import NORMS, THREATS, make_threat
from freeadv_jax.certify.named import (
    CERTIFICATES,
    NamedCertificate,
    certificate_by_name,
    check_certifiable,
)
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.intervals import wilson
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.pixels import Numbers, check_labels, unit_range
from freeadv_jax.progress import Progress

__all__ = ["RobustAccuracy", "robust_accuracy"]

NATURAL = "natural"
# The row of the images that are robust to every attack with the same norm and epsilon.
WORST_CASE = "worst-case"
# Training measures robust accuracy on the validation images with this attack.
VALIDATION_ATTACK = "pgd-10"

# Called while an attack runs, with the name of the attack or stage, the attempts decided
# and a fraction for those under way, the attempts in all, the accuracy so far, and the
# work made and to come.
Watch = Callable[[str, float, int, float, Work], None]


@dataclasses.dataclass
class AttackState:
    """How far a named attack has come.

    The arrays are changed in place while the attack runs. An attack that is given a saved
    state continues there.

    robust    bool[n]: the images that no attempt has broken.
    finished  bool[attempts, n]: the attempts that the current stage has made.
    counts    int[stages]: robust images after each stage, -1 for unfinished stages.
    images    f32[n, h, w, c]: the attacked images, or no image where they are not kept.
    """

    robust: Bool[np.ndarray, " n"]
    finished: Bool[np.ndarray, "attempts n"]
    counts: Int[np.ndarray, " stages"]
    images: Float[np.ndarray, "kept h w c"]


@dataclasses.dataclass
class CertificateState:
    """How far a certificate has come; the arrays are changed in place.

    certified  bool[n]: the images that are certified.
    waiting    bool[n]: the images that are still to be bounded.
    """

    certified: Bool[np.ndarray, " n"]
    waiting: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class EvaluatedAttack:
    """The outcome of an attack for each image.

    `robust` bool[n] marks images that are classified correctly and were not broken.
    `stages` has the number of robust images after each stage of a cascade. `images`
    f32[n, h, w, c] are the attacked images; the array is empty where they are not kept.
    """

    attack: NamedAttack
    robust: Bool[np.ndarray, " n"]
    stages: dict[str, int]
    images: Float[np.ndarray, "kept h w c"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model with labelled images, checked and classified once, to be attacked by name.

    `images` are [n, h, w, c], uint8 or floats in [0, 1]; `labels` are int32[n];
    `prediction` int[n] is the model's class for each image as it is.
    """

    campaign: Campaign
    logits_fn: Callable
    images: Images
    labels: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    # The kernels of the CPU's convolutions: "xla" or "onednn".
    convolutions: str = onednn.XLA
    # The model as it was given, for certificates, which read its program.
    model: Callable | None = None

    @classmethod
    def begin(
        cls,
        logits_fn: Callable,
        images: Images,
        labels: Int[np.ndarray, " n"],
        attacks: Iterable[NamedAttack],
        *,
        batch_size: int,
        seed: int,
        convolutions: str = onednn.AUTO,
    ) -> "Evaluation":
        """Classify the images and return the evaluation.

        `convolutions` is "xla", "onednn" or "auto", which takes oneDNN's kernels on a CPU
        where `attacks` take long; the same call again chooses the same. Log a warning where one of the `attacks` has no DLR loss for so few classes. Raise
        InputError for logits that are not finite or are probabilities, and for labels that
        the model has no class for.
        """
        attacks = list(attacks)
        stages = [stage for attack in attacks for stage in attack.stages.values()]
        kernels = kernels_for(convolutions, stages, logits_fn, images)
        model = logits_fn
        logits_fn = traced_with(kernels, logits_fn, looped=are_random(stages))
        campaign = Campaign(batch_size=batch_size, seed=seed)
        logits = campaign.logits(logits_fn, images)
        check_logits(logits)
        check_labels(labels, logits.shape[1])
        names = [stage for attack in attacks for stage in attack.stages]
        warn_of_few_classes(logits.shape[1], names)
        prediction = logits.argmax(axis=-1)
        return cls(campaign, logits_fn, images, labels, prediction, kernels, model)

    def start(self, attack: NamedAttack, *, keep_images: bool = False) -> AttackState:
        """Return the state before the first attempt of `attack`."""
        attempts = max((stage.attempts for stage in attack.stages.values()), default=0)
        kept = self.images if keep_images else self.images[:0]
        return AttackState(
            robust=self.prediction == self.labels,
            finished=np.zeros((attempts, len(self.labels)), bool),
            counts=np.full(len(attack.stages), -1),
            images=unit_range(np.asarray(kept)),
        )

    def attack(
        self,
        attack: NamedAttack,
        state: AttackState,
        *,
        known: Mapping[str, int] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Run the stages of `attack` that are unfinished in `state`, and update `state`.

        Images that are not robust in `state` are not attacked. `known` has, for each
        stage, the number of images that are left out because they are already known to be
        robust to it; counts and accuracies include them.
        """
        known = known or {}
        for number, (name, stage) in enumerate(attack.stages.items()):
            if state.counts[number] >= 0:
                continue
            title = name if name == attack.name else f"{attack.name}: {name}"
            chosen = images_of_stage(
                name, attack.audit, len(self.labels), self.campaign.seed
            )
            before = known.get(name, 0)
            self._stage(stage, title, state, chosen, before=before, watch=watch)
            state.counts[number] = state.robust.sum() + before
            state.finished[:] = False

    def _stage(self, stage, title, state, chosen, *, before, watch):
        attacked = state.robust & chosen
        total = stage.attempts * int(attacked.sum())

        def update(done, left, work):
            state.robust[:] = np.where(chosen, left, state.robust)
            if watch:
                accuracy = (state.robust.sum() + before) / len(self.labels)
                watch(title, done, total, float(accuracy), work)

        left = self.campaign.attack(
            stage,
            self.logits_fn,
            self.images,
            self.labels,
            attacked,
            finished=state.finished[: stage.attempts],
            adversarial=state.images if len(state.images) else None,
            watch=update,
        )
        state.robust[:] = np.where(chosen, left, state.robust)

    def start_certificate(self) -> CertificateState:
        """Return the state before the first chunk of a certificate.

        An image that is misclassified as it is has no certificate, and does not wait.
        """
        waiting = self.prediction == self.labels
        return CertificateState(np.zeros(len(waiting), bool), waiting)

    def certify(
        self,
        certificate: NamedCertificate,
        state: CertificateState,
        *,
        known: int = 0,
        watch: Watch | None = None,
    ) -> None:
        """Bound the images that wait in `state`, and update `state` after each chunk.

        `known` is the number of images that are left out because they are already known
        to be certified; accuracies include them.
        """
        chosen = np.flatnonzero(state.waiting)
        chunks = certificate.certified(self.model, self.images, self.labels, chosen)
        done = 0
        for chunk, certain in chunks:
            state.certified[chunk] = certain
            state.waiting[chunk] = False
            done += len(chunk)
            if watch:
                share = (int(state.certified.sum()) + known) / len(self.labels)
                work = Work(done, len(chosen) - done)
                watch(certificate.name, done, len(chosen), share, work)


def evaluate(
    logits_fn: Callable,
    images: Images,
    labels: Int[np.ndarray, " n"],
    attacks: Iterable[NamedAttack],
    *,
    batch_size: int,
    seed: int,
    convolutions: str = onednn.AUTO,
    keep_images: bool = False,
    states: dict[str, AttackState] | None = None,
    watch: Watch | None = None,
) -> dict[str, EvaluatedAttack]:
    """Return the outcome of each attack by its name.

    `images` are [n, h, w, c], uint8 or floats in [0, 1]; `labels` are int32[n]. The
    outcome depends on `seed`, not on `batch_size` or the number of devices. For
    `convolutions` see `robust_accuracy`. `states` holds the state of each attack by name:
    states that are found there are continued, the others are added. Raise InputError as
    `Evaluation.begin` does.
    """
    attacks = list(attacks)
    evaluation = Evaluation.begin(
        logits_fn,
        images,
        labels,
        attacks,
        batch_size=batch_size,
        seed=seed,
        convolutions=convolutions,
    )
    return attacked(
        evaluation, attacks, keep_images=keep_images, states=states, watch=watch
    )


def attacked(
    evaluation: Evaluation,
    attacks: Iterable[NamedAttack],
    *,
    keep_images: bool = False,
    states: dict[str, AttackState] | None = None,
    watch: Watch | None = None,
) -> dict[str, EvaluatedAttack]:
    """Return the outcome of each attack by its name; see `evaluate`."""
    states = {} if states is None else states
    outcomes = {}
    for attack in attacks:
        if attack.name not in states:
            states[attack.name] = evaluation.start(attack, keep_images=keep_images)
        state = states[attack.name]
        evaluation.attack(attack, state, watch=watch)
        counts = dict(zip(attack.stages, state.counts.tolist()))
        outcomes[attack.name] = EvaluatedAttack(
            attack, state.robust, counts, state.images
        )
    return outcomes


def accuracy_row(robust: Bool[np.ndarray, " n"]) -> dict:
    """Return {accuracy, interval, correct, examples}, with the 95 % interval of Wilson."""
    correct, examples = int(robust.sum()), len(robust)
    return {
        "accuracy": correct / examples,
        "interval": list(wilson(correct, examples)),
        "correct": correct,
        "examples": examples,
    }


def worst_case_rows(
    rows: Mapping[str, dict], robust: Mapping[str, np.ndarray]
) -> dict[str, dict]:
    """Return a worst-case row for each norm and epsilon that has several attacks.

    `rows` and `robust` bool[n] are by the name of the attack. The row counts the images
    that are robust to all these attacks. Attacks may have been run on different numbers of
    images, always the first ones: the row is about the images that all attacks have.
    """
    attacks: dict[tuple, list[str]] = {}
    for name, row in rows.items():
        made = row["attack"]
        if name in robust and made["epsilon"] and not is_worst_case(name):
            threat = name.partition("@")[2], made["norm"], made["epsilon"]
            attacks.setdefault(threat, []).append(name)
    worst = {}
    for (suffix, norm, epsilon), names in attacks.items():
        if len(names) > 1:
            examples = min(rows[name]["examples"] for name in names)
            left = np.logical_and.reduce([robust[name][:examples] for name in names])
            attack = {"norm": norm, "epsilon": epsilon, "attacks": names}
            name = f"{WORST_CASE}@{suffix}" if suffix else WORST_CASE
            worst[name] = accuracy_row(left) | {"attack": attack}
    return worst


def rows_on_common_images(
    rows: Mapping[str, dict], robust: Mapping[str, np.ndarray]
) -> dict[str, dict]:
    """Return the rows counted on the images that all of them have.

    Attacks are run on the first images of one order, so these are the first images of the
    smallest row. The result is empty where all rows have the same images, because then
    they can be compared as they are.
    """
    rows = {name: row for name, row in rows.items() if name in robust}
    counts = {row["examples"] for row in rows.values()}
    if len(counts) < 2:
        return {}
    few = slice(min(counts))
    common = {
        name: accuracy_row(robust[name][few]) | {"attack": row["attack"]}
        for name, row in rows.items()
    }
    return common | worst_case_rows(common, robust)


def is_worst_case(name: str) -> bool:
    """Return whether this is the name of a worst-case row."""
    return name.partition("@")[0] == WORST_CASE


def flags_as_record(flags: Iterable[Flag]) -> dict[str, dict]:
    """Return, by the name of each flag, {suspicious, text} and its numbers.

    A suspicious flag also has its `advice`.
    """
    return {
        flag.name: {"suspicious": flag.suspicious, "text": flag.text}
        | ({"advice": flag.advice} if flag.advice else {})
        | flag.numbers
        for flag in flags
    }


def flags_as_text(record: Mapping[str, dict]) -> str:
    """Return a line for each flag: ok or suspicious, its name and its numbers.

    Lines below say what to try next, and the last line is the verdict.
    """
    lines = []
    for name, flag in record.items():
        state = "suspicious" if flag["suspicious"] else "ok"
        lines.append(f"{state:12}{name}: {flag['text']}")
    advice = {flag["advice"]: None for flag in record.values() if "advice" in flag}
    lines += [f"{'try next':12}{each}" for each in advice]
    raised = sum(flag["suspicious"] for flag in record.values())
    return "\n".join([*lines, f"{'verdict':12}{verdict_line(raised, len(record))}"])


def table_text(
    rows: Mapping[str, dict],
    flags: Mapping[str, dict],
    *,
    common: Mapping[str, dict] | None = None,
    certified: Mapping[str, dict] | None = None,
    sandwich: Mapping[str, dict] | None = None,
) -> str:
    """Return the table of accuracies, worst cases last, and the red flags below.

    `rows` are by the name of the attack; `flags` are records of red flags by their title.
    `common` are the rows on the images that all rows have, where their images differ.
    `certified` are the rows of certificates, and `sandwich` what they and the attacks say
    together.
    """
    threat = threat_text(rows) or threat_text(certified or {})
    lines = [f"{threat} (natural is the accuracy without an attack):"] * bool(threat)
    lines += _table_lines(rows, certified or {})
    for record in (sandwich or {}).values():
        within = f"{record['norm']} epsilon {epsilon_text(record['epsilon'])}"
        flag = "RED FLAG " * record["suspicious"]
        lines += ["", f"{flag}within {within}, {record['text']}"]
    if common:
        examples = next(iter(common.values()))["examples"]
        lines += ["", f"on the first {examples} images, which all attacks have:"]
        lines += _table_lines(common)
    for title, record in flags.items():
        lines += ["", f"{title}:", flags_as_text(record)]
    return "\n".join(lines)


def _table_lines(rows, certified=types.MappingProxyType({})):
    """The rows of attacks, worst cases last, then those of certificates."""
    rows = dict(sorted(rows.items(), key=lambda item: is_worst_case(item[0])))
    rows |= {f"certified by {name}": row for name, row in certified.items()}
    width = max(len(name) for name in [*rows, "attack"]) + 2
    head = f"{'attack':<{width}}{'accuracy':>9}{'95 % interval':>18}"
    lines = [f"{head}{'correct':>9}{'images':>8}"]
    for name, row in rows.items():
        low, high = row["interval"]
        interval = f"{low:.2%} - {high:.2%}"
        lines.append(
            f"{name:<{width}}{row['accuracy']:>9.2%}{interval:>18}"
            f"{row['correct']:>9}{row['examples']:>8}"
        )
    audits = {name: row["audit"] for name, row in rows.items() if "audit" in row}
    lines += [f"{name}: {audit_text(found)}" for name, found in audits.items()]
    return lines


def threat_text(rows: Mapping[str, dict]) -> str:
    """Return the norm and epsilon of a table, such as 'linf epsilon 8/255'.

    Rows of another norm or epsilon have it in their name, behind an @. The text is empty
    where the table has no other row than natural and those.
    """
    settings = {
        name: row.get("attack") or row["certificate"] for name, row in rows.items()
    }
    threats = {
        (made["norm"], made["epsilon"])
        for name, made in settings.items()
        if made["epsilon"] and "@" not in name
    }
    return " or ".join(
        f"{norm} epsilon {epsilon_text(epsilon)}" for norm, epsilon in sorted(threats)
    )


def epsilon_text(epsilon: float) -> str:
    """Return a radius as people write it: 0.2, but 8/255."""
    levels = epsilon * 255
    if abs(round(epsilon, 3) - epsilon) > 1e-9 and abs(round(levels) - levels) < 1e-6:
        return f"{round(levels)}/255"
    return f"{epsilon:.4g}"


@dataclasses.dataclass(frozen=True)
class RobustAccuracy:
    """Hold the result of `robust_accuracy`; `print` shows it as a table.

    Attributes:
        rows: by attack, {accuracy, correct, examples, interval, attack}. `interval` is
            the 95 % interval of Wilson, `attack` has the settings. A cascade also has
            `stages`, the robust images after each of its attacks, and autoattack-quick
            `audit`, what it may have missed.
        robust: by attack, bool[n]: the images classified correctly and not broken.
        red_flags: the answers of `freeadv_jax.attacks.red_flags`, if asked for.
        images: by attack, f32[n, h, w, c]: the attacked images, if asked for.
        certified_rows: by certificate, a row with its settings under `certificate` in
            place of `attack`. Its accuracy is that of the certified images.
        certified: by certificate, bool[n]: the images that no attack can break.
        sandwich: what attacks and certificates say together, {examples, certified, open,
            broken, violations}, and empty without a certificate. A violation, an image that
            is certified and broken, is also a red flag.
    """

    rows: dict[str, dict]
    robust: dict[str, np.ndarray]
    red_flags: tuple[Flag, ...] = ()
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    certified_rows: dict[str, dict] = dataclasses.field(default_factory=dict)
    certified: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sandwich: dict = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        flags = {"red flags": flags_as_record(self.red_flags)} if self.red_flags else {}
        found = {SANDWICH: self.sandwich} if self.sandwich else {}
        return table_text(
            self.rows, flags, certified=self.certified_rows, sandwich=found
        )


def robust_accuracy(
    logits_fn: Callable,
    images: Numbers | Images,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float = 8 / 255,
    attacks: Sequence[str] = (NATURAL, "pgd-20", "autoattack"),
    step_size: float | None = None,
    samples: int | None = None,
    audit: float | None = None,
    batch_size: int = 200,
    seed: int = 0,
    convolutions: str = onednn.AUTO,
    red_flags: bool = True,
    keep_images: bool = False,
    progress: bool | Callable[[str], None] = False,
) -> RobustAccuracy:
    """Return the accuracy of a model under each of several attacks.

    All devices take part. The result depends on `seed`, not on `batch_size` or the number
    of devices.

    Args:
        logits_fn: maps images f32[b, h, w, c] in [0, 1] to logits [b, k], with its
            normalisation inside. It may be a function, a `Classifier`, a Flax NNX module
            in evaluation mode, a bound Flax Linen module,
            `functools.partial(model.apply, variables, train=False)`, or any callable
            pytree, such as an Equinox module.
        images: [n, h, w, c], uint8 or floats in [0, 1].
        labels: n classes, of any integer type or as a list.
        norm: 'linf', 'l2' or 'l1'; 'patch' for one square anywhere and 'l0' for few
            pixels, as for `pgd`.
        epsilon: the radius of the perturbations in [0, 1] pixels, such as `8 / 255`; the
            side of the patch or the number of pixels, below 1 their share of the image.
        attacks: names, or one string with commas between them: natural, fgsm,
            pgd-<steps>, cw-<steps> and dlr-<steps> (each with -x<restarts>), apgd-ce,
            apgd-dlr, apgd-t, fab-t, fmn, square, autoattack (Croce & Hein, ICML 2020),
            autoattack-plus and autoattack-quick, its first steps with an audit. The
            certificates ibp, crown-ibp, crown and alpha-crown may stand among them (see
            `freeadv_jax.certify`).
        step_size: the step of pgd-, cw- and dlr- in [0, 1] pixels; the default is
            epsilon / 4, and 0.1 for patches and pixels.
        samples: for a randomised model, a function of images and one key for each of
            them: the draws that each attack averages at every step (EOT, Athalye et al.,
            ICML 2018); 20 are usual. An image then counts as broken if the mean of the
            logits is misclassified, and so are 20 means of ten fresh draws each and the
            mean of all 200; natural images are classified by the mean of 200 draws.
            autoattack is its version 'rand'.
        audit: the share of the survivors of autoattack-quick that go through what it left
            out; the default is 0.04.
        batch_size: the images attacked at a time, over all devices together.
        seed: the seed of all random choices.
        convolutions: the kernels of the model's convolutions on a CPU, equal to rounding:
            'xla', 'onednn', or 'auto', which takes oneDNN's where the attacks take long.
        red_flags: also look for signs that the attacks are too weak for this model, on
            the first 200 images (Carlini et al., 2019); see
            `freeadv_jax.attacks.red_flags`. There are none for patches and pixels.
        keep_images: also return the attacked images.
        progress: a function that is called with a line of text now and then, such as
            `print`. True writes these lines to standard error.

    Returns:
        A `RobustAccuracy`, whose `print` is the table of the command `freeadv-evaluate`.
        Two attacks or more add the row 'worst-case': images robust to all of them.

    Raises:
        InputError: for images outside [0, 1] or of another shape; labels that are no
            integers or that the model has no class for; logits that are not [b, k], not
            finite or probabilities; a model in training mode or with further arguments;
            an unknown attack or norm; an epsilon that the norm does not allow.
    """
    images, labels = examples_of(images, labels, raw=True)
    check_samples(samples)
    if samples is not None:
        logits_fn = randomized(logits_fn)
    num_classes = check_model(logits_fn, images[:1])
    check_labels(labels, num_classes)
    logits_fn = arrays_as_leaves(logits_fn)
    threat = {
        "norm": norm,
        "epsilon": epsilon,
        "step_size": make_threat(norm, epsilon).usual_step
        if step_size is None
        else step_size,
        "samples": samples,
    }
    named, certificates = apart(
        named_attacks(attacks, **threat, num_classes=num_classes, audit=audit)
    )
    if certificates:
        check_certifiable(logits_fn, images.shape[1:])
    check_threat(norm, epsilon, norms=THREATS, image_shape=images.shape[1:])
    write = _to_standard_error if progress is True else progress
    evaluation = Evaluation.begin(
        logits_fn,
        images,
        labels,
        named,
        batch_size=batch_size,
        seed=seed,
        convolutions=convolutions,
    )
    outcomes = attacked(
        evaluation,
        named,
        keep_images=keep_images,
        watch=ProgressLines(write) if write else None,
    )
    certified, certified_rows = {}, {}
    for certificate in certificates:
        state = evaluation.start_certificate()
        watch = CertificateLines(write) if write else None
        evaluation.certify(certificate, state, watch=watch)
        certified[certificate.name] = state.certified
        certified_rows[certificate.name] = certificate_row(certificate, state.certified)
    robust = {name: outcome.robust for name, outcome in outcomes.items()}
    rows = {name: outcome_row(outcome, seed) for name, outcome in outcomes.items()}
    rows |= worst_case_rows(rows, robust)
    for name in filter(is_worst_case, rows):
        robust[name] = np.logical_and.reduce(
            [robust[attack] for attack in rows[name]["attack"]["attacks"]]
        )
    natural = evaluation.prediction == evaluation.labels
    both = sandwiches(rows, robust, certified_rows, certified, natural=natural)
    flags = sandwich_flags(both.values())
    if red_flags and norm in NORMS:
        few = slice(CHECKED_IMAGES)
        if write:
            write(f"red flags: looking at {len(labels[few])} images")
        how = {"batch_size": batch_size, "seed": seed, "convolutions": convolutions}
        flags += find_red_flags(logits_fn, images[few], labels[few], **threat, **how)
    kept = {name: outcome.images for name, outcome in outcomes.items()}
    return RobustAccuracy(
        rows,
        robust,
        tuple(flags),
        kept if keep_images else {},
        certified_rows,
        certified,
        both.get(SANDWICH, {}),
    )


def named_attacks(
    names: str | Iterable[str],
    *,
    norm: str,
    epsilon: float,
    step_size: float,
    num_classes: int,
    samples: int | None = None,
    audit: float | None = None,
) -> list[NamedAttack | NamedCertificate]:
    """Return the attacks and certificates of these names, each once.

    See `attack_by_name` and `certificate_by_name`. A string holds names with commas between
    them. `audit` is for autoattack-quick. Raise InputError for an unknown name, for no name
    at all, for an audit without autoattack-quick, and for a certificate of a randomised
    model.
    """
    names = names.split(",") if isinstance(names, str) else names
    how = {"norm": norm, "epsilon": epsilon, "step_size": step_size}
    how |= {"num_classes": num_classes, "samples": samples}
    found = {}
    for name in (name.strip() for name in names):
        if name not in CERTIFICATES:
            found[name] = attack_by_name(name, **how, audit=audit)
            continue
        if samples is not None:
            raise InputError(
                f"{name} is for models that draw nothing: must go without samples"
            )
        found[name] = certificate_by_name(name, norm=norm, epsilon=epsilon)
    if not found:
        raise InputError("attacks is empty: give at least one, such as 'pgd-20'")
    if audit is not None and QUICK not in found:
        raise InputError(f"audit is for {QUICK}: it must be among the attacks")
    return list(found.values())


def apart(
    named: Iterable[NamedAttack | NamedCertificate],
) -> tuple[list[NamedAttack], list[NamedCertificate]]:
    """Return the attacks, and the certificates among them."""
    named = list(named)
    attacks = [each for each in named if isinstance(each, NamedAttack)]
    return attacks, [each for each in named if isinstance(each, NamedCertificate)]


def certificate_row(
    certificate: NamedCertificate, certified: Bool[np.ndarray, " n"]
) -> dict:
    """Return the row of one certificate: the certified images, and its settings."""
    return accuracy_row(certified) | {"certificate": certificate.record()}


def outcome_row(outcome: EvaluatedAttack, seed: int) -> dict:
    """Return the row of one attack: its figures, its settings and those of its stages."""
    stages = {"stages": outcome.stages} if len(outcome.stages) > 1 else {}
    made = {"attack": outcome.attack.record(seed)}
    audit = audit_row(outcome.attack, outcome.robust, outcome.stages, seed)
    return accuracy_row(outcome.robust) | made | stages | audit


def audit_row(
    attack: NamedAttack,
    robust: Bool[np.ndarray, " n"],
    stages: Mapping[str, int],
    seed: int,
) -> dict:
    """Return {audit}, what the attack may have missed, or {} for one without an audit."""
    if attack.audit is None:
        return {}
    return {"audit": attack.audit.bound(robust, stages, seed)}


class ProgressLines:
    """A `Watch` that hands a line to `write` now and then: attempts, rate and accuracy."""

    _unit, _share = "attempts", "accuracy"

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self._attack: tuple[str, int] | None = None

    def __call__(
        self, title: str, done: float, total: int, accuracy: float, work: Work
    ) -> None:
        if self._attack != (title, total):
            self._attack = title, total
            self._progress = Progress(
                title, total=total, unit=self._unit, write=self._write
            )
        self._progress.show(done, work=work, **{self._share: f"{accuracy:.2%}"})


class CertificateLines(ProgressLines):
    """The same for a certificate: images, rate, and the share that is certified so far."""

    _unit, _share = "images", "certified"


def _to_standard_error(line):
    sys.stderr.write(f"{line}\n")
