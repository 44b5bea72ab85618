"""The certificates of a table are those of the functions, a chunk of images at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.certify import alpha_crown, crown, interval
from freeadv_jax.certify.named import (
    CERTIFICATES,
    certificate_by_name,
    check_certifiable,
)
from freeadv_jax.errors import InputError

DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (40, 3, 3, 1), np.uint8)
FIRST, SECOND = (DRAW.normal(size=shape).astype("f") for shape in ((9, 6), (6, 3)))


def logits_fn(images):
    return jnp.maximum(images.reshape(len(images), -1) @ FIRST, 0) @ SECOND


LABELS = np.asarray(logits_fn(IMAGES / np.float32(255))).argmax(axis=1)
FUNCTIONS = {
    "ibp": interval,
    "crown-ibp": lambda *a, **k: crown(*a, **k, intermediate="ibp"),
    "crown": crown,
    "alpha-crown": alpha_crown,
}


def test_every_certificate_has_a_function():
    assert set(FUNCTIONS) == set(CERTIFICATES)


@pytest.mark.parametrize(
    ("name", "norm", "epsilon"),
    [("ibp", "linf", 0.25), ("crown-ibp", "linf", 0.27), ("crown", "l2", 0.8)],
)
def test_chunks_certify_the_images_that_the_function_certifies(name, norm, epsilon):
    ball = {"norm": norm, "epsilon": epsilon}
    chosen = np.flatnonzero(np.arange(40) % 3)
    certificate = certificate_by_name(name, **ball)
    expected = FUNCTIONS[name](logits_fn, IMAGES, LABELS, **ball).certified
    found = np.zeros(40, bool)
    for chunk, certain in certificate.certified(logits_fn, IMAGES, LABELS, chosen):
        assert len(chunk) <= max(certificate.batch_size, 16)
        found[chunk] = certain
    np.testing.assert_array_equal(found[chosen], expected[chosen])
    assert 0 < found.sum() < len(chosen)


def test_settings_are_recorded_with_the_ball():
    ball = {"norm": "l2", "epsilon": 0.5}
    records = {name: certificate_by_name(name, **ball).record() for name in FUNCTIONS}
    assert records["ibp"] == ball | {"bound": "interval"}
    assert records["crown-ibp"] == ball | {"bound": "crown", "intermediate": "ibp"}
    assert records["alpha-crown"] == ball | {
        "bound": "alpha-crown",
        "intermediate": "crown",
        "steps": 20,
        "step_size": 0.1,
    }


def test_a_norm_without_certificates_is_refused_in_one_line():
    with pytest.raises(InputError, match="crown is for the norms linf and l2, not l1"):
        certificate_by_name("crown", norm="l1", epsilon=1.0)


def test_a_model_without_certificates_is_refused_before_any_image_is_bounded():
    check_certifiable(logits_fn, (3, 3, 1))
    with pytest.raises(InputError, match="no rule for sin"):
        check_certifiable(lambda x: jnp.sin(logits_fn(x)), (3, 3, 1))
