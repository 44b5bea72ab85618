"""Compare our attacks with independent implementations on the same weights and images.

    python -m benchmarks.attack_parity --data=DIR [--runs=DIR] [--examples=500]
    python -m benchmarks.attack_parity --set=digits [--runs=DIR] [--examples=500]

PGD is compared with Foolbox on JAX, all other attacks with pyautoattack, the code of
AutoAttack's authors, on PyTorch (`pip install '.[references]'`, see
benchmarks/peers/references.py). The models are the runs of benchmarks.reproduce in
--runs. `--set=digits` compares the attacks in L1, the nearest points, few pixels and patches
on the run digits_free8 of benchmarks.digits, on the test images and then on training
images (`pip install '.[threat-references]'`). `--seeds=5` compares means over seeds, because
random starts decide about some images. Finished rows are kept beside them, so that the same
command continues after an interruption; they are made again for another model, other code
or another machine.
"""

import pathlib

import numpy as np
import torch

from benchmarks.peers.references import judged, reference
from benchmarks.peers.torch_networks import torch_classifier
from benchmarks.record import kept, measured_on, write_record
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError
from freeadv_jax.files import checksum, write_json
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.pixels import unit_range
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state

PGD_STEPS = 20
ATTACKS = (f"pgd-{PGD_STEPS}", "apgd-ce", "apgd-dlr", "apgd-t")
ATTACKS += ("fab-t", "square", "autoattack")
# Every attack breaks all images of the natural model at 8/255. Smaller balls leave some
# images to compare.
SETTINGS = (
    ("cifar10_free8", "linf", 8 / 255),
    ("cifar10_natural", "linf", 8 / 255),
    ("cifar10_natural", "linf", 1 / 255),
    ("cifar10_free8", "l2", 0.5),
    ("cifar10_natural", "l2", 0.5),
)
# The attacks on digits: by the row's name, ours and the reference.
_L1 = ("apgd-ce", "apgd-t", "fab-t")
DIGITS = (
    ("digits_free8", "l1", 1.5, {name: (name, name) for name in _L1}),
    ("digits_free8", "l1", 1.0, {"fmn": ("fmn", "fmn")}),
    ("digits_free8", "l2", 0.7, {name: ("fmn", name) for name in ("fmn", "ddn")}),
    ("digits_free8", "linf", 0.2, {"fmn": ("fmn", "fmn")}),
    (
        "digits_free8",
        "patch",
        2,
        {
            "one place": ("pgd-50-x5", "patch-in-the-middle"),
            "five places": ("pgd-50-x5", "patch-5"),
            "all places": ("pgd-50-x20", "patch-all"),
        },
    ),
    ("digits_free8", "l0", 1, {"pgd-50-x5": ("pgd-50-x5", "sigma-zero")}),
    # Square has 5,000 queries.
    ("digits_free8", "l1", 2.0, {"square": ("square", "square")}),
)
SETS = {
    "cifar10": tuple(
        (*setting, {name: (name, name) for name in ATTACKS}) for setting in SETTINGS
    ),
    "digits": DIGITS,
}
PACKAGES = ("torch", "pyautoattack", "foolbox")
# Only digits need these.
DIGITS_PACKAGES = (*PACKAGES, "adv-lib", "adversarial-robustness-toolbox")


class Pair:
    """One model in JAX and in PyTorch, with the images to attack."""

    def __init__(self, workdir, dataset, *, examples, batch_size):
        run = read_run(workdir)
        variables = trained_state(run, "last").variables
        self.logits_fn = logits_functions(model_of(run))(variables)
        self.torch_model = torch_classifier(run, variables)
        self.checksum = checksum(variables)
        parts = dataset.test, dataset.train
        pixels = np.concatenate([part.images[:examples] for part in parts])[:examples]
        labels = np.concatenate([part.labels[:examples] for part in parts])
        self.images, self.labels = unit_range(pixels), labels[:examples]
        self.batch_size = batch_size
        logits = self._campaign(0).logits(self.logits_fn, self.images)
        self.correct = logits.argmax(axis=-1) == self.labels
        with torch.no_grad():
            nchw = torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())
            others = self.torch_model(nchw).numpy()
        self.largest_difference = float(np.abs(logits - others).max())

    def _campaign(self, seed):
        return Campaign(batch_size=self.batch_size, seed=seed)

    def ours(self, name, norm, epsilon, seed):
        """Return which images stay robust under our attack, bool[n]."""
        robust, campaign = self.correct, self._campaign(seed)
        step_size = make_threat(norm, epsilon).usual_step
        named = attack_by_name(
            name, norm=norm, epsilon=epsilon, step_size=step_size, num_classes=10
        )
        for stage in named.stages.values():
            robust = campaign.attack(
                stage, self.logits_fn, self.images, self.labels, robust
            )
        return robust

    def theirs(self, name, norm, epsilon, seed):
        """Return the same for the reference, and its images outside ball or box.

        It attacks only correctly classified images.
        """
        pgd = name.startswith("pgd")
        options = {"steps": PGD_STEPS, "step_size": epsilon / 4} if pgd else {}
        correct = self.correct
        fields = {"norm": norm, "epsilon": epsilon, "batch_size": self.batch_size}
        adversarial = reference("pgd" if pgd else name)(
            self.logits_fn if pgd else self.torch_model,
            self.images[correct],
            self.labels[correct],
            seed=seed,
            **fields,
            **options,
        )
        robust, outside = judged(
            self.torch_model,
            self.images[correct],
            self.labels[correct],
            adversarial,
            **fields,
        )
        whole = correct.copy()
        whole[correct] = robust
        return whole, outside

    def compare(self, name, other, norm, epsilon, seeds):
        """Return one row: robust accuracy in percent, ours and the reference's.

        It is the mean over seeds; the counts are those of all seeds together.
        """
        ours = np.stack([self.ours(name, norm, epsilon, seed) for seed in range(seeds)])
        found = [self.theirs(other, norm, epsilon, seed) for seed in range(seeds)]
        theirs = np.stack([robust for robust, _ in found])
        return {
            "ours": 100 * float(ours.mean()),
            "reference": 100 * float(theirs.mean()),
            "points_above": 100 * float(ours.mean() - theirs.mean()),
            "broken_by_ours_alone": int((theirs & ~ours).sum()),
            "broken_by_reference_alone": int((ours & ~theirs).sum()),
            "reference_outside": sum(outside for _, outside in found),
            "seeds": seeds,
        }


def main(argv):
    parser = Parser("benchmarks.attack_parity", __doc__)
    parser.add_argument(
        "--set", choices=SETS, default="cifar10", help="the data set and its models"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="the folder of CIFAR-10, required by --set=cifar10",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/reproduce_cifar10_scaled_down",
        help="the runs of benchmarks.reproduce",
    )
    parser.add_argument(
        "--examples", type=count, default=500, help="test images to attack"
    )
    parser.add_argument(
        "--batch_size", type=count, default=64, help="images attacked at a time"
    )
    parser.add_argument(
        "--seeds", type=count, default=1, help="seeds whose mean is compared"
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        type=int,
        metavar="N",
        help="numbers of the model and ball, to share the work among machines; default: all",
    )
    parser.add_argument(
        "--threads",
        type=count,
        default=torch.get_num_threads(),
        help="threads of PyTorch",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: benchmarks/results/attack_parity.json, for "
        "digits attack_parity_digits.json",
    )
    options = parser.parse_args(argv[1:])
    if options.set == "cifar10" and not options.data:
        raise InputError("--data is missing: the folder of CIFAR-10")
    settings = SETS[options.set]
    suffix = "" if options.set == "cifar10" else f"_{options.set}"
    out = options.out or f"benchmarks/results/attack_parity{suffix}.json"
    dataset = load_arrays(options.set, options.data, validation_examples=0)
    torch.set_num_threads(options.threads)
    packages = DIGITS_PACKAGES if options.set == "digits" else PACKAGES
    rows = {}
    for number in options.settings or range(len(settings)):
        if not 0 <= number < len(settings):
            raise InputError(
                f"--settings={number}: allowed are 0 to {len(settings) - 1}"
            )
        name, norm, epsilon, attacks = settings[number]
        file = options.runs / f"attack_parity{suffix}-{options.examples}-{number}.json"
        pair = Pair(
            options.runs / name,
            dataset,
            examples=options.examples,
            batch_size=options.batch_size,
        )
        how = {"batch_size": options.batch_size, "seeds": options.seeds}
        how["model"] = pair.checksum
        found = kept(file, how | {"environment": measured_on(packages)})
        setting = found.setdefault("result", {"attacks": {}})
        rows[f"{name} {norm} {epsilon:.4f}"] = setting
        setting |= {
            "norm": norm,
            "epsilon": epsilon,
            "examples": options.examples,
            "natural": 100 * float(pair.correct.mean()),
            "largest_logit_difference": pair.largest_difference,
        }
        print(f"\n{name}, {norm} {epsilon:.4f}: natural {setting['natural']:.1f} %")
        for attack, (ours, theirs) in attacks.items():
            if attack not in setting["attacks"]:
                row = pair.compare(ours, theirs, norm, epsilon, options.seeds)
                setting["attacks"][attack] = row
                write_json(file, found)
            row = setting["attacks"][attack]
            print(
                f"  {attack:12} ours {row['ours']:5.1f}  reference "
                f"{row['reference']:5.1f}  {row['points_above']:+.1f} points",
                flush=True,
            )
    write_record(out, rows, packages=packages)


if __name__ == "__main__":
    run_command(main)
