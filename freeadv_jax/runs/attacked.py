"""Attacks and certificates whose outcomes are kept on disk, and continue after a kill."""

import dataclasses

from freeadv_jax.attacks.named import NamedAttack
from freeadv_jax.attacks.robustness import (
    AttackState,
    CertificateLines,
    CertificateState,
    Evaluation,
    ProgressLines,
)
from freeadv_jax.certify.named import NamedCertificate
from freeadv_jax.console import say
from freeadv_jax.runs.outcomes import ArrayFile


@dataclasses.dataclass(frozen=True)
class ResumableAttacks:
    """Attacks of one evaluation, with the outcome for each image in an `ArrayFile`.

    The file holds by the name of the attack bool[n], the robust images, and with
    `keep_images` as <name>/images the attacked images f32[n, h, w, c]. Certificates are
    there as certified/<name>, bool[n], the certified images.
    """

    evaluation: Evaluation
    file: ArrayFile
    keep_images: bool

    def known(self, attack: NamedAttack) -> bool:
        """Return whether the file has all arrays that are asked for."""
        names = [attack.name] + [_images(attack.name)] * self.keep_images
        return all(name in self.file.arrays for name in names)

    def run(
        self, attack: NamedAttack, description: dict, *, before: dict
    ) -> dict[str, int]:
        """Run an attack, or the part that is missing, and put its outcome into the file.

        The outcome is in `file.arrays` afterwards; saving is up to the caller. `before` is
        the row of the first images, on which the attack was run already; they are left
        out. `description` tells this attack from others when it is resumed. Return the
        number of robust images after each stage.
        """
        evaluation, arrays = self.evaluation, self.file.arrays
        known = slice(before["examples"])
        fresh = evaluation.start(attack, keep_images=self.keep_images)
        fresh.robust[known] = False
        if self.keep_images and before["examples"]:
            fresh.images[known] = arrays[_images(attack.name)][known]
        state = self._under_way(
            description
            | {"name": attack.name, "before": known.stop, "kept": len(fresh.images)},
            fresh,
        )
        show = ProgressLines(say)

        def watch(*progress):
            self.file.save_sometimes()
            show(*progress)

        counts = before.get("stages", {attack.name: before["correct"]})
        evaluation.attack(attack, state, known=counts, watch=watch)
        self.file.forget_under_way()
        if before["examples"]:
            state.robust[known] = arrays[attack.name][known]
        arrays[attack.name] = state.robust
        if self.keep_images:
            arrays[_images(attack.name)] = state.images
        else:  # Images kept before are those of other settings, or fewer.
            arrays.pop(_images(attack.name), None)
        return dict(zip(attack.stages, state.counts.tolist()))

    def certify(
        self, certificate: NamedCertificate, description: dict, *, before: dict
    ) -> None:
        """Certify the images, or the part that is missing, as `run` runs an attack."""
        arrays, key = self.file.arrays, certified_key(certificate.name)
        known = slice(before["examples"])
        fresh = self.evaluation.start_certificate()
        fresh.waiting[known] = False
        found = self.file.under_way(
            description | {"name": certificate.name, "before": known.stop},
            certified=fresh.certified,
            waiting=fresh.waiting,
        )
        state = CertificateState(**found)
        show = CertificateLines(say)

        def watch(*progress):
            self.file.save_sometimes()
            show(*progress)

        self.evaluation.certify(
            certificate, state, known=before["correct"], watch=watch
        )
        self.file.forget_under_way()
        if before["examples"]:
            state.certified[known] = arrays[key][known]
        arrays[key] = state.certified

    def _under_way(self, description, fresh):
        """The state in the file, or `fresh`; the first name is older than its meaning."""
        arrays = self.file.under_way(
            description,
            standing=fresh.robust,
            finished=fresh.finished,
            counts=fresh.counts,
            images=fresh.images,
        )
        return AttackState(robust=arrays.pop("standing"), **arrays)


def certified_key(name: str) -> str:
    """Return the name under which the images that a certificate certifies are kept."""
    return f"certified/{name}"


def _images(name):
    """The name under which the images made by an attack are kept."""
    return f"{name}/images"
