"""Lines enclose every function on every interval, whatever its sign and width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.certify.ball import Interval
from freeadv_jax.certify.curves import (
    RECIPROCAL,
    SMOOTH,
    Line,
    PiecewiseLinear,
    enclosing_lines,
    power,
    relu,
)


def piecewise(breakpoint, left, right):
    lines = (Line(*map(jnp.float32, piece)) for piece in (left, right))
    return PiecewiseLinear(jnp.float32(breakpoint), *lines)


CURVES = {
    **SMOOTH,
    "reciprocal": RECIPROCAL,
    "cube": power(3),
    "fourth power": power(4),
    "relu": relu(jnp.float32),
    "leaky": piecewise(0.0, (0.1, 0.0), (1.0, 0.0)),
    "absolute": piecewise(0.0, (-1.0, 0.0), (1.0, 0.0)),
    "minimum": piecewise(0.7, (1.0, 0.0), (0.0, 0.7)),
    "jump": piecewise(0.3, (0.5, -1.0), (-2.0, 3.0)),
    "step": piecewise(-0.2, (0.0, -1.0), (0.0, 1.0)),
}
POSITIVE = {"log", "rsqrt", "reciprocal"}


def intervals(name):
    """Return intervals of every width on both sides of zero."""
    draw = np.random.default_rng(0)
    widths = np.concatenate([[0.0, 1e-7, 1e-5], 10 ** draw.uniform(-3, 1.3, 300)])
    low = draw.normal(size=widths.size) * 10 ** draw.uniform(-3, 1, widths.size)
    if name in POSITIVE:
        low = np.abs(low) + 1e-3
    if name == "sqrt":
        low = np.abs(low)
    if name == "log1p":
        low = np.abs(low) - 0.999
    low = low.astype(np.float32)
    return Interval(jnp.asarray(low), jnp.asarray(low + widths.astype(np.float32)))


def value(name, x):
    curve = CURVES[name]
    if not isinstance(curve, PiecewiseLinear):
        return np.asarray(jax.jit(curve.value)(x), np.float64)
    left, right = (
        piece.slope * x + piece.offset for piece in (curve.left, curve.right)
    )
    return np.asarray(np.where(x < curve.breakpoint, left, right), np.float64)


def samples(interval):
    shares = np.linspace(0, 1, 401)[:, None]
    low, high = (np.asarray(end, np.float64) for end in interval)
    return np.clip(low + shares * (high - low), low, high).astype(np.float32)


@pytest.mark.parametrize("name", CURVES)
def test_the_lines_of_a_curve_enclose_it(name):
    interval = intervals(name)
    below, above = jax.jit(lambda i: enclosing_lines(CURVES[name], i))(interval)
    x = samples(interval)
    f = value(name, x)
    for line, sign in ((below, 1), (above, -1)):
        slope, offset = (np.asarray(part, np.float64) for part in line)
        assert np.isfinite(slope).all() and np.isfinite(offset).all()
        gap = sign * (f - (slope * x + offset))
        assert (gap >= 0).all(), (name, gap.min())
    if "step" in name or "jump" in name:
        return
    # At a point the lines meet the function.
    at = below.slope * interval.low + below.offset
    np.testing.assert_allclose(at[0], f[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_a_line_of_any_slope_encloses_the_curve(name):
    interval = intervals(name)
    draw = np.random.default_rng(1)
    slopes = draw.normal(size=(6, interval.low.size)) * 10 ** draw.uniform(
        -9, 1, (6, 1)
    )
    x = samples(interval)
    f = value(name, x)
    extremes = jax.jit(CURVES[name].extremes)
    for slope in [0 * slopes[0], *slopes]:
        slope = slope.astype(np.float32)
        least, greatest = extremes(slope, interval)
        here = f - np.asarray(slope, np.float64) * x
        assert (here >= np.asarray(least, np.float64)).all()
        assert (here <= np.asarray(greatest, np.float64)).all()


def test_wide_intervals_of_s_shaped_functions_keep_what_lies_far_from_both_ends():
    wide = Interval(jnp.array([-5.0, -1e8]), jnp.array([1e8, 5.0]))
    for name in ("tanh", "logistic", "erf"):
        below, above = enclosing_lines(CURVES[name], wide)
        for x in (-20.0, -3.0, 0.0, 3.0, 20.0):
            f = value(name, np.float32(x))
            inside = (wide.low <= x) & (x <= wide.high)
            over = np.asarray(above.slope * x + above.offset) >= f
            under = np.asarray(below.slope * x + below.offset) <= f
            assert (over | ~inside).all() and (under | ~inside).all()


def test_relu_has_the_adaptive_lines_of_crown():
    interval = Interval(jnp.array([-1.0, -2.0, 1.0, -3.0]), jnp.array([2.0, 1, 3, -1]))
    below, above = enclosing_lines(relu(jnp.float32), interval)
    np.testing.assert_allclose(below.slope, [1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(below.offset, [0, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(above.slope, [2 / 3, 1 / 3, 1, 0], atol=1e-6)
    np.testing.assert_allclose(above.offset, [2 / 3, 2 / 3, 0, 0], atol=1e-5)


def test_a_chosen_slope_lies_between_the_pieces_that_the_interval_meets():
    interval = Interval(jnp.array([-1.0, 0.5, -2.0]), jnp.array([1.0, 1.0, -1.0]))
    curve = relu(jnp.float32)
    slope = curve.chosen_slope(interval, jnp.full(3, 0.25))
    np.testing.assert_allclose(slope, [0.25, 1, 0])
    np.testing.assert_allclose(curve.share_of(slope, interval), [0.25, 1, 0])
