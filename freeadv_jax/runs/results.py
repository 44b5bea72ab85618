"""results.json: accuracies with the settings they were made with, kept up to date.

Evaluations add rows. A row stays as long as its model, images and settings are those that
are asked for; the outcome for each image lies beside it in evaluation.npz.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.attacks.campaign import Images
from freeadv_jax.attacks.named import NamedAttack
from freeadv_jax.attacks.red_flags import CHECKED_IMAGES, red_flags
from freeadv_jax.attacks.robustness import (
    Evaluation,
    accuracy_row,
    apart,
    audit_row,
    certificate_row,
    flags_as_record,
    named_attacks,
    rows_on_common_images,
    table_text,
    worst_case_rows,
)
from freeadv_jax.attacks.sandwich import SANDWICH, sandwiches
from freeadv_jax.certify.named import NamedCertificate, check_certifiable
from freeadv_jax.console import say
from freeadv_jax.corrupted.accuracy import error_table
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.devices import onednn
from freeadv_jax.devices.processes import agreement, require_same
from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, checksum, read_json, write_json
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.attacked import ResumableAttacks, certified_key
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.outcomes import ArrayFile
from freeadv_jax.runs.provenance import environment

# The key of the red flags for the norm and epsilon of the training. The key for another
# norm or epsilon goes on with @ and its name.
RED_FLAGS = "red_flags"
# The key of the rows on the images that all attacks have, where their images differ.
COMMON = "evaluation_on_common_images"
# The key of the error on corrupted images.
CORRUPTIONS = "corruptions"
# The key of the rows of certificates. The key 'sandwich' has the comparison of both sides;
# for another norm or epsilon it goes on with @ and its name.
CERTIFIED = "certified"
# The keys of results.json in their order. A model from elsewhere has no config or training.
_FIELDS = (
    "model",
    "data",
    "config",
    "environment",
    "training",
    "evaluation",
    CERTIFIED,
    CORRUPTIONS,
)


@dataclasses.dataclass(frozen=True)
class ResultsFolder:
    """Where an evaluation writes: results<suffix>.json and evaluation<suffix>.npz.

    `header` is put into results.json: the model, configuration and training. With
    `of_one_model` the folder refuses the results of any other model; otherwise they
    replace those that are there, as in the folder of a run that went on training.
    """

    folder: AnyPath
    header: dict = dataclasses.field(default_factory=dict)
    suffix: str = ""
    of_one_model: bool = False

    @property
    def path(self) -> AnyPath:
        """The path of results.json."""
        return self.folder / f"results{self.suffix}.json"

    def arrays(
        self, logits_fn: Callable, images: Images, labels: np.ndarray
    ) -> ArrayFile:
        """Return the arrays kept for this model and all `images`; see `ArrayFile`."""
        about = {
            "model": checksum(logits_fn),
            "images": checksum((_identity(images), labels)),
        }
        path = self.folder / f"evaluation{self.suffix}.npz"
        return ArrayFile(path, about, of_one_model=self.of_one_model)


def configured_attacks(
    config: ConfigDict, names: Iterable[str], *, num_classes: int
) -> list[NamedAttack | NamedCertificate]:
    """Return the attacks and certificates `names` with the norm, epsilon and step size of a configuration."""
    return named_attacks(
        names,
        norm=config.attack.norm,
        epsilon=config.attack.epsilon,
        step_size=config.evaluation.step_size,
        num_classes=num_classes,
    )


def evaluate_run(run: Run, variables, split: Split, *, training: dict) -> dict:
    """Evaluate a run after its training with the configured attacks.

    Return the content of the run's results.json, which has `training` in it.
    """
    config, evaluation = run.config, run.config.evaluation
    header = {"config": config.to_dict(), "training": training}
    return evaluate_and_record(
        logits_functions(model_of(run))(variables),
        split.images,
        split.labels,
        configured_attacks(config, evaluation.attacks, num_classes=run.num_classes),
        into=ResultsFolder(run.workdir, header),
        batch_size=evaluation.batch_size,
        seed=config.seed,
        convolutions=onednn.choose_again(config.model.convolutions),
        examples=evaluation.examples,
    )


def evaluate_and_record(
    logits_fn: Callable,
    images: Images,
    labels: np.ndarray,
    attacks: list[NamedAttack | NamedCertificate],
    *,
    into: ResultsFolder,
    batch_size: int,
    seed: int,
    convolutions: str = onednn.AUTO,
    examples: int = 0,
    keep_images: bool = False,
) -> dict:
    """Add a row for each attack to results.json and return its content.

    `images` are [n, h, w, c], uint8 or floats in [0, 1]; `labels` are int32[n]. The first
    `examples` of them are attacked, or all for 0. `convolutions` is 'xla', 'onednn' or
    'auto', see `robust_accuracy`, and the environment in results.json has the kernels that
    were taken. evaluation.npz gets the outcome for each
    image: by the name of the attack bool[n], true for robust images, and with
    `keep_images` as <name>/images the attacked images. Certificates among `attacks` add
    rows under 'certified' and arrays certified/<name>, and after them 'sandwich' says
    what both say together.

    An attack that is found there, of this model and with these settings, is run only on
    the images that it lacks. An attack that was cut off continues. Raise InputError where a
    row of more images or of other images would be lost, and see `ResultsFolder` for another
    model.
    """
    attacks, certificates = apart(attacks)
    if certificates:  # A model without them is refused before the attacks take hours.
        check_certifiable(logits_fn, images.shape[1:])
    file = into.arrays(logits_fn, images, labels)
    file.arrays["label"] = labels
    images, labels = images[: examples or None], labels[: examples or None]
    results = _results_before(into, known=file.found)
    # Each process deals out the images that its own files call open.
    require_same(
        f"{file.identity} {json.dumps(results['evaluation'])} "
        f"{json.dumps(results.get(CERTIFIED))}",
        f"what they read in {into.folder}, which must be one folder that they share",
    )
    rows = results["evaluation"]
    evaluation = Evaluation.begin(
        logits_fn,
        images,
        labels,
        attacks,
        batch_size=batch_size,
        seed=seed,
        convolutions=convolutions,
    )
    results["environment"]["convolutions"] = evaluation.convolutions
    _keep_prediction(file, evaluation.prediction)
    resumable = ResumableAttacks(evaluation, file, keep_images)
    stale = {
        attack.name
        for attack in attacks
        if not resumable.known(attack) or _differs(attack, rows.get(attack.name), seed)
    }
    _refuse_to_lose(rows, stale, examples=len(labels))
    certified = results.get(CERTIFIED, {})
    outdated = {
        certificate.name
        for certificate in certificates
        if certified_key(certificate.name) not in file.arrays
        or certified.get(certificate.name, {}).get("certificate")
        != certificate.record()
    }
    _refuse_to_lose(certified, outdated, examples=len(labels))
    if not file.found:  # The rows of another model go before its arrays do.
        write_json(into.path, results)
    for attack in attacks:
        if attack.name in stale and rows.pop(attack.name, None):
            write_json(into.path, results)
        made = {"examples": len(labels), "attack": attack.record(seed)}
        row = rows.get(attack.name, {"examples": 0, "correct": 0})
        if row["examples"] < len(labels):
            counts = resumable.run(attack, made, before=row)
            stages = {"stages": counts} if len(counts) > 1 else {}
            robust = file.arrays[attack.name]
            audit = audit_row(attack, robust, counts, seed)
            rows[attack.name] = accuracy_row(robust) | made | stages | audit
            file.save()
            write_json(into.path, results)
    for certificate in certificates:
        name = certificate.name
        if name in outdated:
            certified.pop(name, None)
        made = {"examples": len(labels), "certificate": certificate.record()}
        row = certified.get(name, {"examples": 0, "correct": 0})
        if row["examples"] < len(labels):
            resumable.certify(certificate, made, before=row)
            certain = file.arrays[certified_key(name)]
            certified[name] = certificate_row(certificate, certain)
            results[CERTIFIED] = certified
            file.save()
            write_json(into.path, results)
    _summarise(results, file.arrays)
    with agreement():  # All processes read the file next.
        write_json(into.path, results)
    say(f"{evaluation.campaign.compilations} programs compiled")
    return results


def _results_before(into, *, known):
    """The results as they are on disk if they are `known` to be this model's, else empty."""
    before = read_json(into.path) if known and into.path.exists() else {}
    rows = before.get("evaluation", {})
    found = before | into.header | {"environment": environment(), "evaluation": rows}
    results = {name: found[name] for name in _FIELDS if name in found}
    return results | {name: found[name] for name in found if name.startswith(RED_FLAGS)}


def _summarise(results, robust):
    """Bring the rows up to date that are made of several attacks."""
    rows = results["evaluation"]
    for name, row in worst_case_rows(rows, robust).items():
        rows.pop(name, None)  # The worst case comes last.
        rows[name] = row
    if common := rows_on_common_images(rows, robust):
        results[COMMON] = common
    certified = results.get(CERTIFIED, {})
    results |= sandwiches(
        rows,
        robust,
        certified,
        {name: robust[certified_key(name)] for name in certified},
        natural=robust["prediction"] == robust["label"][: len(robust["prediction"])],
    )


def _keep_prediction(file, prediction):
    """Put the predicted classes into the file unless it has those of more images."""
    if len(file.arrays.get("prediction", ())) <= len(prediction):
        file.arrays["prediction"] = prediction


def _differs(attack, row, seed):
    """Whether a row was made with other settings, or is not there.

    Accuracy without an attack, which has no stage, is the same for every epsilon.
    """
    return bool(attack.stages) and (row is None or row["attack"] != attack.record(seed))


def _refuse_to_lose(rows, stale, *, examples):
    """Raise InputError where a stale row has more images than its replacement would."""
    for name in stale & rows.keys():
        if (had := rows[name]["examples"]) > examples:
            raise InputError(
                f"{name} was made on {had} images, with other settings or without "
                f"keeping the attacked images: ask for as many, not {examples}"
            )


def record_red_flags(
    logits_fn: Callable,
    images: Images,
    labels: np.ndarray,
    *,
    into: ResultsFolder,
    threat: dict,
    batch_size: int,
    seed: int,
    convolutions: str = onednn.AUTO,
    name: str = RED_FLAGS,
) -> dict:
    """Look for red flags, add them to results.json under `name`, and return its content.

    `threat` is {norm, epsilon, step_size}, in [0, 1] pixels, and {samples} for a randomised
    model. The first 200 of the images
    are attacked; red flags that are found there, with the same threat and of as many
    images, are kept. The evaluation comes first: it writes the file.
    """
    results = read_json(into.path)
    images, labels = images[:CHECKED_IMAGES], labels[:CHECKED_IMAGES]
    made = threat | {"examples": len(labels)}
    before = results.get(name, {})
    if threat.items() <= before.items() and before["examples"] >= len(labels):
        return results
    say(f"red flags: looking at {len(labels)} images")
    how = {"batch_size": batch_size, "seed": seed, "convolutions": convolutions}
    flags = red_flags(logits_fn, images, labels, **threat, **how)
    results[name] = made | {"flags": flags_as_record(flags)}
    write_json(into.path, results)
    return results


def table(results: dict) -> str:
    """Return the accuracies, red flags and corruptions of results.json as a table."""
    flags = {
        name.replace("_", " "): results[name]["flags"]
        for name in results
        if name.startswith(RED_FLAGS)
    }
    both = {name: found for name, found in results.items() if name.startswith(SANDWICH)}
    text = table_text(
        results["evaluation"],
        flags,
        common=results.get(COMMON),
        certified=results.get(CERTIFIED),
        sandwich=both,
    )
    if CORRUPTIONS in results:
        text += f"\n\n{error_table(results[CORRUPTIONS])}"
    return text


def _identity(images):
    """Return an identity of the images: a checksum of encoded ones, else the pixels.

    Encoded images are not decoded for it.
    """
    if isinstance(images, EncodedImages):
        return np.uint32(images.fingerprint())
    return images
