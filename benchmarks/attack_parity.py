"""Compare our attacks with independent implementations on the same weights and images.

    python -m benchmarks.attack_parity --data=DIR [--runs=DIR] [--examples=500]

PGD is compared with Foolbox on JAX, all other attacks with pyautoattack, the code of
AutoAttack's authors, on PyTorch (`pip install '.[references]'`, see
benchmarks/peers/references.py). The models are the runs of benchmarks.reproduce in
--runs. Finished rows are kept beside them, so that the same command continues after an
interruption; they are made again for another model, other code or another machine.
"""

import pathlib

import numpy as np
import torch

from benchmarks.peers.references import judged, reference
from benchmarks.peers.torch_networks import torch_classifier
from benchmarks.record import kept, measured_on, write_record
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
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
SEED = 0
PACKAGES = ("torch", "pyautoattack", "foolbox")


class Pair:
    """One model in JAX and in PyTorch, with the images to attack."""

    def __init__(self, workdir, dataset, *, examples, batch_size):
        run = read_run(workdir)
        variables = trained_state(run, "last").variables
        self.logits_fn = logits_functions(model_of(run))(variables)
        self.torch_model = torch_classifier(run, variables)
        self.checksum = checksum(variables)
        self.images = unit_range(dataset.images[:examples])
        self.labels = dataset.labels[:examples]
        self.batch_size = batch_size
        self.campaign = Campaign(batch_size=batch_size, seed=SEED)
        logits = self.campaign.logits(self.logits_fn, self.images)
        self.correct = logits.argmax(axis=-1) == self.labels
        with torch.no_grad():
            nchw = torch.from_numpy(self.images.transpose(0, 3, 1, 2).copy())
            others = self.torch_model(nchw).numpy()
        self.largest_difference = float(np.abs(logits - others).max())

    def ours(self, name, norm, epsilon):
        """Return which images stay robust under our attack, bool[n]."""
        robust = self.correct
        named = attack_by_name(
            name, norm=norm, epsilon=epsilon, step_size=epsilon / 4, num_classes=10
        )
        for stage in named.stages.values():
            robust = self.campaign.attack(
                stage, self.logits_fn, self.images, self.labels, robust
            )
        return robust

    def theirs(self, name, norm, epsilon):
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
            seed=SEED,
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

    def compare(self, name, norm, epsilon):
        """Return one row: robust accuracy in percent, ours and the reference's."""
        ours = self.ours(name, norm, epsilon)
        theirs, outside = self.theirs(name, norm, epsilon)
        return {
            "ours": 100 * float(ours.mean()),
            "reference": 100 * float(theirs.mean()),
            "points_above": 100 * float(ours.mean() - theirs.mean()),
            "broken_by_ours_alone": int((theirs & ~ours).sum()),
            "broken_by_reference_alone": int((ours & ~theirs).sum()),
            "reference_outside": outside,
        }


def main(argv):
    parser = Parser("benchmarks.attack_parity", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
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
        "--settings",
        nargs="+",
        type=int,
        choices=range(len(SETTINGS)),
        metavar="N",
        default=range(len(SETTINGS)),
        help="numbers of the model and ball, to share the work among machines",
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
        default="benchmarks/results/attack_parity.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    dataset = load_arrays("cifar10", options.data, validation_examples=0).test
    torch.set_num_threads(options.threads)
    rows = {}
    for number in options.settings:
        name, norm, epsilon = SETTINGS[number]
        file = options.runs / f"attack_parity-{options.examples}-{number}.json"
        pair = Pair(
            options.runs / name,
            dataset,
            examples=options.examples,
            batch_size=options.batch_size,
        )
        how = {"batch_size": options.batch_size, "model": pair.checksum}
        found = kept(file, how | {"environment": measured_on(PACKAGES)})
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
        for attack in ATTACKS:
            if attack not in setting["attacks"]:
                setting["attacks"][attack] = pair.compare(attack, norm, epsilon)
                write_json(file, found)
            row = setting["attacks"][attack]
            print(
                f"  {attack:12} ours {row['ours']:5.1f}  reference "
                f"{row['reference']:5.1f}  {row['points_above']:+.1f} points",
                flush=True,
            )
    write_record(options.out, rows, packages=PACKAGES)


if __name__ == "__main__":
    run_command(main)
