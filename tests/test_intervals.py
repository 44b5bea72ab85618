import pytest
from scipy.stats import binomtest

from freeadv_jax.intervals import clopper_pearson, wilson


@pytest.mark.parametrize(
    ("correct", "examples", "lowest", "highest"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_has_the_published_ends(correct, examples, lowest, highest):
    interval = wilson(correct, examples)
    assert interval == pytest.approx((lowest, highest), abs=5e-5)


@pytest.mark.parametrize(
    ("correct", "examples"),
    [(0, 1), (1, 1), (3, 7), (23, 100), (100, 100), (0, 10_000), (4682, 10_000)],
)
def test_interval_is_that_of_scipy(correct, examples):
    interval = binomtest(correct, examples).proportion_ci(method="wilson")
    assert wilson(correct, examples) == pytest.approx(tuple(interval), abs=1e-7)


def test_interval_starts_at_0_for_none_and_ends_at_1_for_all():
    for examples in range(1, 300):
        assert wilson(0, examples)[0] == 0
        assert wilson(examples, examples)[1] == 1


def test_interval_without_examples_is_everything():
    assert wilson(0, 0) == (0, 1)


def test_larger_z_gives_a_wider_interval():
    low, high = wilson(23, 100)
    wider_low, wider_high = wilson(23, 100, z=2.575829)
    assert wider_low < low < 0.23 < high < wider_high


@pytest.mark.parametrize("correct", [0, 1, 70, 99, 100])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_exact_lower_bound_is_that_of_scipy(correct, alpha):
    test = binomtest(correct, 100, alternative="greater")
    wanted = test.proportion_ci(1 - alpha, method="exact").low
    assert clopper_pearson(correct, 100, alpha=alpha) == pytest.approx(wanted, rel=1e-9)
