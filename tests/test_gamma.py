"""The closed-form Gamma quantile against scipy's exact one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from blackjax_smile.gamma import gamma_quantile, match_gamma, wilson_hilferty

pytestmark = pytest.mark.numerics

#: Upper ends of the ranges of probabilities, and the largest relative error that is
#: allowed in them for shapes from the row's up to the next row's.
PROBABILITIES = (0.7, 0.935, 0.98, 0.9999)
ALLOWED = {
    0.05: (1e-4, 0.021, 0.18, 0.39),
    0.1: (3e-4, 0.09, 0.20, 0.22),
    0.2: (0.03, 0.10, 0.10, 0.09),
    0.3: (0.041, 0.055, 0.055, 0.09),
    0.5: (0.04, 0.027, 0.027, 0.075),
    1.0: (0.023, 0.011, 0.011, 0.05),
    2.0: (0.009, 0.005, 0.005, 0.03),
    5.0: (0.011, 0.002, 0.002, 0.012),
    10.0: (0.005, 0.001, 0.001, 0.006),
    100.0: (2e-4, 1e-4, 1e-4, 5e-4),
}
CELLS = [
    (shapes, probabilities, allowed)
    for shapes, row in zip(itertools.pairwise((*ALLOWED, 1000.0)), ALLOWED.values(), strict=True)
    for probabilities, allowed in zip(itertools.pairwise((0.01, *PROBABILITIES)), row, strict=True)
]


def grid(shapes, probabilities, size=25):
    """Return float32 shapes and probabilities of a cell, denser towards p = 1."""
    shape, tail = np.meshgrid(
        np.geomspace(*shapes, size), np.geomspace(*(1 - np.asarray(probabilities)), 2 * size)
    )
    return jnp.asarray(shape.ravel(), jnp.float32), jnp.asarray(1 - tail.ravel(), jnp.float32)


def relative_error(function, shape, probability):
    exact = stats.gamma.ppf(np.asarray(probability, float), np.asarray(shape, float))
    return np.asarray(function(shape, 1.0, probability), float) / exact - 1


@pytest.mark.parametrize(("shapes", "probabilities", "allowed"), CELLS)
def test_quantile(shapes, probabilities, allowed):
    shape, probability = grid(shapes, probabilities)
    # Below the smallest float32 there is no relative error to speak of.
    representable = stats.gamma.ppf(probability, shape) > np.finfo(np.float32).tiny
    error = relative_error(gamma_quantile, shape, probability)[representable]
    assert np.max(np.abs(error)) < allowed
    # The table says how large the error is, not only how small. (Below 1e-3 it is the
    # rounding of gammaln, which differs between versions of JAX.)
    if allowed >= 1e-3:
        assert np.max(np.abs(error)) > 0.1 * allowed


@pytest.mark.parametrize("shapes", [*itertools.pairwise((*ALLOWED, 1000.0))])
def test_never_much_worse_than_wilson_hilferty(shapes):
    shape, probability = grid(shapes, (0.03, 0.9999))
    ours = np.abs(relative_error(gamma_quantile, shape, probability))
    theirs = np.abs(relative_error(wilson_hilferty, shape, probability))
    assert np.all(ours <= theirs + 1e-4)


@pytest.mark.parametrize(
    ("shape", "probability", "error"), [(0.05, 0.98, -0.544), (1.0, 1 / 30, -0.369), (0.2, 0.1, -1)]
)
def test_wilson_hilferty_fails_at_small_shapes(shape, probability, error):
    """The figures of the docstring; where the cube is negative it is clipped."""
    args = jnp.float32(shape), jnp.float32(probability)
    np.testing.assert_allclose(relative_error(wilson_hilferty, *args), error, atol=1e-3)


def test_monotone_in_the_probability():
    probability = jnp.linspace(0.0, 1.0, 5001)
    for shape in (0.05, 0.2, 0.5, 1.0, 3.0, 1000.0):
        quantiles = gamma_quantile(jnp.float32(shape), 2.0, probability)
        # Round-off at large shapes, where neighbours differ by less than it.
        assert jnp.all(jnp.diff(quantiles[:-1]) >= -1e-5 * quantiles[1:-1])
        assert quantiles[0] == 0
        assert quantiles[-1] == jnp.inf


@pytest.mark.parametrize("shape", [1e-3, 1e6, 1e12, 1e18])
def test_extreme_shapes_stay_finite(shape):
    quantiles = gamma_quantile(jnp.float32(shape), 1 / shape, jnp.asarray([0.03, 0.5, 0.98]))
    assert jnp.all(jnp.isfinite(quantiles) & (quantiles >= 0))
    if shape > 1:
        np.testing.assert_allclose(quantiles, 1, atol=3e-3)


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_matched_moments(unit):
    """Mean k theta and variance k theta^2, in any unit that float32 holds."""
    shape, scale = match_gamma(jnp.float32(3.0 * unit), jnp.float32(1.2 * unit))
    np.testing.assert_allclose(shape * scale, 3.0 * unit, rtol=1e-6)
    np.testing.assert_allclose(jnp.sqrt(shape) * scale, 1.2 * unit, rtol=1e-6)


def test_matched_to_draws():
    """A share p of the draws lies below Q(p), at 5 standard errors, at shape 2."""
    draws = jax.random.gamma(jax.random.key(0), 2.0, (100_000,)) * 3.0
    shape, scale = match_gamma(jnp.mean(draws), jnp.std(draws))
    for p in (1 / 30, 0.5, 0.98):
        share = float(jnp.mean(draws < gamma_quantile(shape, scale, p)))
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / 100_000) + 0.01 * p


def test_shapes_that_are_integers():
    np.testing.assert_allclose(gamma_quantile(1, 2.0, 0.01), gamma_quantile(1.0, 2.0, 0.01))
