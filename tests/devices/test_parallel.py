from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from freeadv_jax.attacks.threat import L2, Linf
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError
from freeadv_jax.models import build_model
from freeadv_jax.training import trades
from freeadv_jax.training.alp import alp_train_step
from freeadv_jax.training.awp import awp_train_step
from freeadv_jax.training.fgsm_pgi import fgsm_pgi_train_step
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.gaussian import gaussian_train_step
from freeadv_jax.training.grad_align import grad_align_train_step
from freeadv_jax.training.ibp import crown_ibp_train_step
from freeadv_jax.training.llr import llr_train_step
from freeadv_jax.training.mart import mart_train_step
from freeadv_jax.training.multistep import STATE_LAYOUT
from freeadv_jax.training.n_fgsm import n_fgsm_train_step
from freeadv_jax.training.pgd import fgsm_rs_train_step, pgd_train_step
from freeadv_jax.training.state import create_state
from freeadv_jax.training.trades import trades_train_step

LINF, L2 = Linf(8 / 255), L2(0.5)
METHODS = {
    "free": partial(free_train_step, threat=LINF, step_size=8 / 255, replays=2),
    "free, random start": partial(
        free_train_step, threat=LINF, step_size=2 / 255, replays=2, start="random"
    ),
    # If a pixel's exact gradient is zero, rounding decides the direction of an L-inf
    # attack's steps. An L2 attack does not depend on it.
    "pgd": partial(pgd_train_step, threat=L2, step_size=0.25, steps=2),
    "trades": partial(trades_train_step, threat=L2, step_size=0.25, steps=2, beta=6.0),
    "alp": partial(alp_train_step, threat=L2, step_size=0.25, steps=2, alp_lambda=0.5),
    "llr": partial(
        llr_train_step, threat=L2, step_size=0.25, steps=2, llr_lambda=4.0, llr_mu=3.0
    ),
    "mart": partial(
        mart_train_step, threat=L2, step_size=0.25, steps=2, mart_lambda=5.0
    ),
    "awp": partial(awp_train_step, threat=L2, step_size=0.25, steps=2, awp_gamma=0.01),
    "fgsm-rs": partial(fgsm_rs_train_step, threat=L2, step_size=0.5),
    "n-fgsm": partial(n_fgsm_train_step, threat=L2, step_size=0.25, n_fgsm_noise=2.0),
    "fgsm-pgi": partial(
        fgsm_pgi_train_step, threat=LINF, step_size=8 / 255, pgi_lambda=10.0
    ),
    "grad-align": partial(
        grad_align_train_step, threat=L2, step_size=0.25, grad_align_lambda=0.2
    ),
    "gaussian": partial(
        gaussian_train_step, threat=L2, step_size=0.25, gaussian_sigma=0.25
    ),
    "crown-ibp": partial(
        crown_ibp_train_step,
        threat=LINF,
        step_size=0.0,
        updates=2,
        certified_scale=1.0,
        certified_warmup=-1.0,
        certified_rampup=2.0,
        certified_kappa=0.5,
        crown_ibp_beta=0.5,
    ),
}


# Methods whose programs take longest to compile.
LONG = ("alp", "mart", "llr", "awp", "grad-align", "ibp", "crown-ibp")


def setting(*, sync=True):
    model = build_model(
        "small-cnn-bn",
        num_classes=10,
        image_shape=(8, 8, 3),
        normalization="mean_std",
        mean=(0.5,),
        std=(0.25,),
        dtype="float32",
        batch_norm_axis=parallel.AXIS if sync else None,
    )
    tx = optax.sgd(0.05, 0.9)
    state = create_state(model, tx, seed=3, batch_size=32, image_shape=(8, 8, 3))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 32, dtype=np.int32),
    }
    return {"model": model, "tx": tx}, state, batch


def on_all_devices(step, state, batch):
    step = parallel.pmap(
        partial(step, axis_name=parallel.AXIS),
        inputs=(STATE_LAYOUT, SPLIT),
        outputs=(STATE_LAYOUT, REPLICATED),
        donate=0,
    )
    placed = parallel.place(state, STATE_LAYOUT)
    return (*step(placed, parallel.place(batch, SPLIT)), step, placed)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.thorough if name in LONG else ())
        for name in METHODS
    ],
)
def test_eight_devices_take_the_same_step_as_one(method, monkeypatch):
    # TRADES starts its attack near 0. There the divergence compares nearly equal
    # distributions, and its float32 gradient, which leads the attack, has few correct
    # digits.
    monkeypatch.setattr(trades, "_START", 0.1)
    options, state, batch = setting()
    step = partial(METHODS[method], **options)
    # One device has no axis to synchronise over.
    alone_options, _, _ = setting(sync=False)
    alone, alone_metrics = jax.jit(partial(METHODS[method], **alone_options))(
        state, jax.tree.map(jnp.array, batch)
    )
    together, metrics, _, _ = on_all_devices(step, state, batch)
    assert together.delta.sharding.num_devices == 8
    assert together.delta.shape == (32, 8, 8, 3)
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    # The learning rate is 1 / 20, so the momentum is 20 times as large as the step.
    close_momentum = partial(np.testing.assert_allclose, rtol=0, atol=20e-6)
    jax.tree.map(close, together.params, alone.params)
    jax.tree.map(close, together.collections, alone.collections)
    jax.tree.map(close_momentum, together.opt_state, alone.opt_state)
    np.testing.assert_array_equal(together.delta, alone.delta)
    # A certified method's loss is near 28, where float32 numbers are 2e-6 apart.
    close_metric = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close_metric, metrics, alone_metrics)


def test_batch_norm_per_device_changes_the_step_and_keeps_devices_equal():
    options, state, batch = setting(sync=False)
    step = partial(METHODS["free"], **options)
    alone, _ = jax.jit(step)(state, jax.tree.map(jnp.array, batch))
    together, _, _, _ = on_all_devices(step, state, batch)
    differences = jax.tree.map(
        lambda a, b: float(np.abs(np.array(a) - np.array(b)).max()),
        together.params,
        alone.params,
    )
    assert max(jax.tree.leaves(differences)) > 1e-4
    for array in jax.tree.leaves((together.params, together.collections)):
        copies = [np.array(shard.data) for shard in array.addressable_shards]
        assert len(copies) == 8
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_step_compiles_once_and_donates_its_state():
    options, state, batch = setting()
    after, _, step, before = on_all_devices(
        partial(METHODS["free"], **options), state, batch
    )
    for _ in range(2):
        after, _ = step(after, parallel.place(batch, SPLIT))
    assert step._cache_size() == 1
    assert all(array.is_deleted() for array in jax.tree.leaves(before.params))
    assert before.delta.is_deleted()
    assert int(after.step) == 3


def test_fetched_copy_survives_donation():
    _, state, _ = setting()
    placed = parallel.place(state, STATE_LAYOUT)
    copy = parallel.fetch(placed)
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    jax.block_until_ready(bump(placed.delta))
    assert not copy.delta.any()


def test_kernels_that_add_in_any_order_are_left_out_on_gpu(monkeypatch):
    left_out = {"xla_gpu_exclude_nondeterministic_ops": True}
    assert parallel.compiler_options() != left_out
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.compiler_options() == left_out
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert parallel.compiler_options() is None


def test_batch_that_does_not_divide_is_refused_with_both_numbers():
    parallel.check_batch_size(16)
    with pytest.raises(InputError, match="batch of 12 does not divide over 8 devices"):
        parallel.check_batch_size(12)
