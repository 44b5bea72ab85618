"""Our attacks are as strong as the peers', and our training steps equal theirs."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.contender import configured_run
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.threat import Linf
from freeadv_jax.config import base_config
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.build import configured_optimizer, initial_state_of, model_of
from freeadv_jax.runs.folder import Run
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.pgd import pgd_train_step

pytestmark = pytest.mark.torch

IMAGES = np.random.default_rng(0).random((48, 8, 8, 3), np.float32)
EPSILON = {"linf": 0.006, "l2": 0.05}
# The ball and the step of a replay.
BALL = {"epsilon": 8 / 255, "step_size": 8 / 255}


@pytest.fixture(scope="module")
def problem():
    """Return (run, variables, logits) of an untrained WRN-10-1 on noise.

    Its predictions count as the labels, so that it classifies every image correctly.
    """
    pytest.importorskip("torch")
    pytest.importorskip("pyautoattack")
    pytest.importorskip("foolbox")
    config = base_config()
    config.model.name = "wrn-10-1"
    run = Run(pathlib.Path(), config, num_classes=10, image_shape=(8, 8, 3))
    variables = initial_state_of(run).variables
    logits = Campaign(batch_size=48).logits(
        logits_functions(model_of(run))(variables), IMAGES
    )
    return run, variables, logits


def test_a_network_in_pytorch_gives_the_same_logits(problem):
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
        pytest.param("fab-t", "l2", marks=pytest.mark.thorough),
        pytest.param("autoattack", "linf", marks=pytest.mark.thorough),
    ],
)
def test_our_attack_leaves_at_most_one_image_more_than_the_reference(
    problem, name, norm
):
    from benchmarks.peers.references import judged, reference
    from benchmarks.peers.torch_networks import torch_classifier

    run, variables, logits = problem
    labels = logits.argmax(axis=-1)
    logits_fn = logits_functions(model_of(run))(variables)
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


def trained_on(network, method, *, pixels, batch_size):
    """Return a run without synchronised BatchNorm, a batch, and a state with delta."""
    run = configured_run(network, method, batch_size=batch_size)
    run.config.model.sync_batch_norm = False
    run = dataclasses.replace(run, image_shape=(pixels, pixels, run.image_shape[-1]))
    rng = np.random.default_rng(0)
    shape = (batch_size, *run.image_shape)
    batch = {
        "image": rng.integers(0, 256, shape, dtype=np.uint8),
        "label": rng.integers(0, run.num_classes, batch_size, dtype=np.int32),
    }
    epsilon = run.config.attack.epsilon
    delta = jnp.asarray(rng.uniform(-epsilon, epsilon, shape), jnp.float32)
    return run, batch, initial_state_of(run).replace(delta=delta)


def to_torch(images):
    import torch

    return torch.from_numpy(np.array(images, np.float32).transpose(0, 3, 1, 2).copy())


def in_pytorch(run, batch, state):
    """Return the learner, the batch and the initial weights in PyTorch."""
    import torch

    from benchmarks.peers.torch_networks import torch_classifier, torch_tensors
    from benchmarks.peers.torch_training import Learner, sgd

    model = torch_classifier(run, state.variables).train().requires_grad_()
    labels = torch.from_numpy(batch["label"]).long()
    batch = to_torch(batch["image"]) / 255, labels
    learner = Learner(model, sgd(run, model, fused=True))
    return learner, batch, torch_tensors(state.variables)


def assert_same_gradients(run, state, learner, before, *, atol=1e-4):
    """Compare the first update of SGD divided by its learning rate, decay included."""
    from benchmarks.peers.torch_networks import torch_tensors

    rate = run.config.optimizer.learning_rate
    theirs, ours = learner.model.network.state_dict(), torch_tensors(state.variables)
    weights = {name for name, _ in learner.model.network.named_parameters()}
    largest = 0.0
    for name in weights:
        gradient = ((before[name] - ours[name]) / rate).numpy()
        found = ((before[name] - theirs[name]) / rate).numpy()
        np.testing.assert_allclose(found, gradient, atol=atol, err_msg=name)
        largest = max(largest, np.abs(gradient).max())
    assert largest > 1e-2


@pytest.mark.parametrize(
    ("network", "pixels"),
    [
        ("preact-resnet-18", 8),
        ("wrn-32-10-madry", 8),
        ("resnet-50", 32),
        ("small-cnn", 8),
        ("small-cnn-bn", 8),
    ],
)
def test_every_network_in_pytorch_gives_the_same_logits(network, pixels):
    pytest.importorskip("torch")
    run, batch, state = trained_on(network, "natural", pixels=pixels, batch_size=4)
    images = np.float32(batch["image"]) / np.float32(255)
    # In evaluation mode BatchNorm does not amplify rounding errors.
    apply = functools.partial(model_of(run).apply, train=False)
    logits = np.asarray(jax.jit(apply)(state.variables, images))
    learner, (torch_images, _), _ = in_pytorch(run, batch, state)
    found = learner.model.eval()(torch_images).detach().numpy()
    np.testing.assert_allclose(found, logits, atol=1e-4 * np.abs(logits).max())
    assert np.std(logits) > 1e-2


def our_replay(run, batch, state, *, straight_through=False):
    """Return the state after a replay of Free-m, and the metrics."""
    step = functools.partial(
        free_train_step,
        model=model_of(run),
        tx=configured_optimizer(run.config),
        threat=Linf(BALL["epsilon"]),
        step_size=BALL["step_size"],
        replays=1,
        straight_through=straight_through,
    )
    return jax.jit(step)(state, batch)


@pytest.mark.parametrize(
    ("network", "straight_through"),
    [("wrn-10-1", False), ("small-cnn-bn", False), ("small-cnn-bn", True)],
)
def test_a_replay_of_free_m_in_pytorch_has_the_same_gradients_and_delta(
    network, straight_through
):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_training import free_step

    run, batch, state = trained_on(network, "free-1", pixels=8, batch_size=16)
    learner, torch_batch, before = in_pytorch(run, batch, state)
    delta = to_torch(state.delta)
    options = {"replays": 1, "straight_through": straight_through}
    theirs = free_step(learner, torch_batch, delta, **BALL, **options)
    after, ours = our_replay(run, batch, state, straight_through=straight_through)
    assert float(theirs["loss"]) == pytest.approx(float(ours["loss"]), abs=1e-5)
    assert float(theirs["accuracy"]) == pytest.approx(float(ours["accuracy"]))
    assert_same_gradients(run, after, learner, before)
    difference = np.abs(to_torch(after.delta).numpy() - delta.detach().numpy())
    # The sign of a gradient near zero depends on rounding.
    assert np.mean(difference > 1e-4) < 1e-3
    assert np.mean(np.abs(after.delta - state.delta) > 1e-4) > 0.4


@pytest.mark.parametrize(
    ("network", "pixels", "batch_size"),
    [
        ("preact-resnet-18", 32, 8),
        ("wrn-32-10-madry", 16, 4),
        ("wrn-16-4", 16, 8),
        ("resnet-50", 64, 4),
    ],
)
def test_a_replay_of_a_deep_network_in_pytorch_is_the_same_in_float64(
    network, pixels, batch_size
):
    pytest.importorskip("torch")
    script = pathlib.Path(__file__).parent / "peers_in_float64.py"
    arguments = [sys.executable, script, network, str(pixels), str(batch_size)]
    paths = os.pathsep.join((str(script.parents[2]), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        arguments,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_natural_update_in_pytorch_has_the_same_gradients():
    pytest.importorskip("torch")
    from benchmarks.peers.torch_training import natural_step

    run, batch, state = trained_on("wrn-10-1", "natural", pixels=8, batch_size=16)
    learner, torch_batch, before = in_pytorch(run, batch, state)
    natural_step(learner, torch_batch)
    natural = {"threat": Linf(0.0), "step_size": 0.0, "replays": 1}
    step = functools.partial(
        free_train_step,
        model=model_of(run),
        tx=configured_optimizer(run.config),
        **natural,
    )
    after, _ = jax.jit(step)(state.replace(delta=0 * state.delta), batch)
    assert_same_gradients(run, after, learner, before)


def test_a_pgd_update_in_pytorch_has_the_same_gradients():
    pytest.importorskip("torch")
    from benchmarks.peers.torch_training import pgd_step

    run, batch, state = trained_on("wrn-10-1", "3-pgd", pixels=8, batch_size=16)
    learner, torch_batch, before = in_pytorch(run, batch, state)
    threat = Linf(8 / 255)
    start = threat.random_start(state.attack_keys(), run.image_shape)
    options = {"step_size": 2 / 255, "steps": 3}
    theirs = pgd_step(learner, torch_batch, to_torch(start), epsilon=8 / 255, **options)
    step = functools.partial(
        pgd_train_step,
        model=model_of(run),
        tx=configured_optimizer(run.config),
        threat=threat,
        **options,
    )
    after, ours = jax.jit(step)(state, batch)
    assert float(theirs["loss"]) == pytest.approx(float(ours["loss"]), abs=1e-4)
    assert_same_gradients(run, after, learner, before)


def test_batches_in_pytorch_are_crops_and_mirror_images():
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_batches import device_batches, host_batches
    from freeadv_jax.data.split import Split

    run = configured_run("wrn-10-1", "natural", batch_size=5)
    pad = run.config.data.pad
    images = np.random.default_rng(0).integers(1, 256, (10, 6, 6, 3), dtype=np.uint8)
    split = Split(images, np.arange(10, dtype=np.int32))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    seen = set()
    for batches in (device_batches, host_batches):
        drawn = batches(run, split, torch.device("cpu"))
        for _ in range(8):
            labels_of_pass = []
            for _ in range(2):
                found, labels = next(drawn)
                assert found.dtype == torch.float32
                found = np.rint(255 * found.numpy().transpose(0, 2, 3, 1))
                for image, label in zip(found, labels.tolist(), strict=True):
                    views = {
                        (top, left, mirrored)
                        for top in range(2 * pad + 1)
                        for left in range(2 * pad + 1)
                        for mirrored in (1, -1)
                        if np.array_equal(
                            padded[label, top : top + 6, left : left + 6][
                                :, ::mirrored
                            ],
                            image,
                        )
                    }
                    assert len(views) == 1
                    seen |= {(batches.__name__, *views.pop())}
                labels_of_pass += labels.tolist()
            assert sorted(labels_of_pass) == list(range(10))
    # Each kind of batch shows more than 25 different views in 80 draws.
    for batches in (device_batches, host_batches):
        places = {view[1:] for view in seen if view[0] == batches.__name__}
        assert len(places) > 25


def test_programs_that_pytorch_compiled_are_not_kept_for_the_next_process(
    tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_training import _compile, natural_step

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run, batch, state = trained_on("small-cnn-bn", "natural", pixels=8, batch_size=4)
    learner, batch, _ = in_pytorch(run, batch, state)
    seconds, _ = _compile(learner, lambda: natural_step(learner, batch))
    assert seconds > 0.0
    assert list(tmp_path.rglob("*.so"))
    # PyTorch would look here for a graph that it compiled earlier.
    assert not list(tmp_path.rglob("fxgraph"))
    assert not list(tmp_path.rglob("aotautograd"))
