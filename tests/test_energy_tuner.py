"""The paper's tuner as a pure function: its thresholds, its moments, its drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from blackjax_smile.sgmcmc.energy_tuner import (
    energy_thresholds,
    init_energy_tuner,
    update_energy_tuner,
)
from blackjax_smile.sgmcmc.running_moments import init_running_moments, update_running_moments

pytestmark = pytest.mark.numerics

A, STRENGTH, RESET = 0.1, 0.02, 0.98


def feed(errors, smoothing_factor=0.01):
    """Run the tuner over given energy errors; return its last state and all thresholds."""

    def body(tuner, error):
        thresholds = energy_thresholds(tuner, A, RESET)
        new = update_energy_tuner(tuner, error, thresholds, A, STRENGTH, smoothing_factor)
        return new, (thresholds, jnp.log(new.step_size / tuner.step_size))

    return jax.lax.scan(body, init_energy_tuner(jnp.asarray(1.0)), errors)


@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_running_moments_are_the_bias_corrected_averages(beta):
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(50, 2))
    moments = init_running_moments({"a": jnp.zeros(2)})
    for n, value in enumerate(values, 1):
        moments = update_running_moments(moments, {"a": jnp.asarray(value, jnp.float32)}, beta)
        weights = beta * (1 - beta) ** np.arange(n - 1, -1, -1)
        weights /= weights.sum()
        mean = weights @ values[:n]
        np.testing.assert_allclose(moments.mean["a"], mean, rtol=1e-5)
        variance = weights @ (values[:n] - mean) ** 2
        np.testing.assert_allclose(moments.variance["a"], variance, rtol=1e-4, atol=1e-6)


def test_thresholds_are_quantiles_of_the_matched_gamma():
    errors = jax.random.gamma(jax.random.key(0), 4.0, (5000,))
    tuner, _ = feed(errors, smoothing_factor=1e-3)
    thresholds = energy_thresholds(tuner, A, RESET)
    mean, variance = float(tuner.moments.mean), float(tuner.moments.variance)
    law = stats.gamma(mean**2 / variance, scale=variance / mean)
    expected = law.ppf([A / 3, 1 - 2 * A / 3, RESET])
    np.testing.assert_allclose(jnp.stack(thresholds), expected, rtol=0.02)


@pytest.mark.parametrize("shape", [1.75, 10.0])
def test_drift(shape):
    """A stationary Gamma law: log step_size falls as the thresholds' definition says.

    By a/3 log(1 + s) + 2a/3 log(1 - s) = -6.87e-4 a step, within three standard errors
    of 64 chains.
    """
    expected = A / 3 * np.log(1 + STRENGTH) + 2 * A / 3 * np.log(1 - STRENGTH)

    def chain(key):
        _, (_, changes) = feed(jax.random.gamma(key, shape, (4000,)))
        return jnp.mean(changes[1000:])

    drifts = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(1), 64)))
    error = drifts.std(ddof=1) / np.sqrt(len(drifts))
    assert error < 0.03 * abs(expected)
    assert abs(drifts.mean() - expected) < 3 * error


def test_drift_of_normal_energy_changes():
    """No Gamma law: the step size rises, by what the true law gives the thresholds."""
    mean, variance = np.sqrt(2 / np.pi), 1 - 2 / np.pi
    law = stats.gamma(mean**2 / variance, scale=variance / mean)
    grows = stats.halfnorm.cdf(law.ppf(A / 3))
    shrinks = stats.halfnorm.sf(law.ppf(1 - 2 * A / 3))
    expected = grows * np.log(1 + STRENGTH) + shrinks * np.log(1 - STRENGTH)
    assert 0 < expected < 1e-4

    def chain(key):
        _, (_, changes) = feed(jnp.abs(jax.random.normal(key, (4000,))))
        return jnp.mean(changes[1000:])

    drifts = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(1), 64)))
    # The approximate quantiles and the moments' own noise shift it by some 5e-5.
    assert abs(drifts.mean() - expected) < 1e-4


def test_the_drift_does_not_see_the_scale():
    """Errors a million times larger: not a step size differs."""
    errors = jax.random.gamma(jax.random.key(0), 2.0, (500,))
    small, large = feed(errors)[0], feed(1e6 * errors)[0]
    np.testing.assert_allclose(large.step_size, small.step_size, rtol=1e-6)


def test_one_spike_does_not_lift_the_thresholds():
    errors = jax.random.gamma(jax.random.key(0), 2.0, (500,))
    spiked = errors.at[300].set(1e12)
    _, (plain, _) = feed(errors)
    _, (with_spike, changes) = feed(spiked)
    assert changes[300] < 0
    assert jnp.max(with_spike.rejection[301:] / plain.rejection[301:]) < 2


def test_errors_that_have_grown_for_good_are_accepted_again():
    errors = jax.random.gamma(jax.random.key(0), 2.0, (1500,))
    errors = errors.at[500:].multiply(1000)
    _, (thresholds, _) = feed(errors)
    rejected = errors > thresholds.rejection
    assert jnp.mean(rejected[500:505]) > 0.7
    assert jnp.mean(rejected[1000:]) < 0.06


def test_degenerate_laws_judge_nothing():
    """Errors of zero deviation, of zero, and none at all."""
    for errors in (jnp.ones(30), jnp.zeros(30), jnp.full(30, jnp.nan)):
        tuner, _ = feed(errors)
        thresholds = energy_thresholds(tuner, A, RESET)
        assert thresholds.rejection == jnp.inf
        assert thresholds.growth == 0
        assert tuner.step_size == 1


def test_non_finite_steps_shrink_the_step_and_leave_the_law():
    tuner, _ = feed(jax.random.gamma(jax.random.key(0), 2.0, (100,)))
    thresholds = energy_thresholds(tuner, A, RESET)
    new = update_energy_tuner(tuner, jnp.asarray(jnp.inf), thresholds, A, STRENGTH, 0.01)
    np.testing.assert_allclose(new.step_size, 0.98 * tuner.step_size, rtol=1e-6)
    assert new.moments == tuner.moments
