"""Our attacks are as strong as independent implementations: benchmarks.attack_parity."""

import pathlib

import numpy as np
import pytest

from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.config import base_config
from freeadv_jax.evaluation import logits_functions
from freeadv_jax.run import Run

pytestmark = pytest.mark.torch

IMAGES = np.random.default_rng(0).random((48, 8, 8, 3), np.float32)
EPSILON = {"linf": 0.006, "l2": 0.05}


@pytest.fixture(scope="module")
def problem():
    """An untrained WRN-10-1 on noise, right by definition; (run, variables, labels)."""
    pytest.importorskip("torch")
    pytest.importorskip("pyautoattack")
    pytest.importorskip("foolbox")
    config = base_config()
    config.model.name = "wrn-10-1"
    run = Run(pathlib.Path(), config, num_classes=10, image_shape=(8, 8, 3))
    variables = run.initial_state().variables
    logits = Campaign(batch_size=48).logits(
        logits_functions(run.model())(variables), IMAGES
    )
    return run, variables, logits


def test_network_in_pytorch_gives_the_same_logits(problem):
    import torch

    from benchmarks.peers.torch_networks import torch_classifier

    run, variables, logits = problem
    nchw = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = torch_classifier(run, variables)(nchw).numpy()
    np.testing.assert_allclose(found, logits, atol=1e-5)
    assert len(np.unique(logits.argmax(-1))) > 1


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("pgd-20", "linf"),
        ("pgd-20", "l2"),
        ("apgd-ce", "l2"),
        ("fab-t", "l2"),
        ("autoattack", "linf"),
    ],
)
def test_no_more_images_stand_than_under_the_reference(problem, name, norm):
    from benchmarks.peers.references import judged, reference
    from benchmarks.peers.torch_networks import torch_classifier

    run, variables, logits = problem
    labels = logits.argmax(axis=-1)
    logits_fn = logits_functions(run.model())(variables)
    torch_model = torch_classifier(run, variables)
    epsilon = EPSILON[norm]
    fields = {"norm": norm, "epsilon": epsilon, "batch_size": 48}
    pgd = name.startswith("pgd")
    options = {"steps": 20, "step_size": epsilon / 4} if pgd else {}
    adversarial = reference("pgd" if pgd else name)(
        logits_fn if pgd else torch_model, IMAGES, labels, seed=0, **fields, **options
    )
    theirs, outside = judged(torch_model, IMAGES, labels, adversarial, **fields)

    ours = np.ones(48, bool)
    attack = attack_by_name(
        name, norm=norm, epsilon=epsilon, step_size=epsilon / 4, num_classes=10
    )
    for stage in attack.stages.values():
        ours = Campaign(batch_size=48).attack(
            stage, logits_fn, IMAGES, labels.astype(np.int32), ours
        )
    assert outside == 0
    assert 8 < theirs.sum() < 40
    assert ours.sum() <= theirs.sum() + 1
