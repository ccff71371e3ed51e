"""Scores against hand-computed and exact values; convergence in function space."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blackjax_smile import evaluation, prediction
from blackjax_smile.function_space import prediction_diagnostics
from helpers import SIGMAS

pytestmark = pytest.mark.numerics


def test_calibration_error_by_hand():
    """Ten rows in two bins: 6 of confidence .9, of which 3 right; 4 of .65, all right."""
    probabilities = jnp.array([[0.9, 0.1]] * 6 + [[0.35, 0.65]] * 4)
    labels = jnp.array([0, 0, 0, 1, 1, 1] + [1] * 4)
    curve = evaluation.calibration_curve(probabilities, labels, num_bins=10)
    np.testing.assert_array_equal(curve.count, [0, 0, 0, 0, 0, 0, 4, 0, 6, 0])
    np.testing.assert_allclose(curve.confidence[jnp.array([6, 8])], [0.65, 0.9], rtol=1e-6)
    np.testing.assert_allclose(curve.accuracy[jnp.array([6, 8])], [1.0, 0.5])
    error = evaluation.expected_calibration_error(probabilities, labels, num_bins=10)
    np.testing.assert_allclose(error, 0.6 * 0.4 + 0.4 * 0.35, rtol=1e-6)
    np.testing.assert_allclose(evaluation.accuracy(probabilities, labels), 0.7)


@pytest.mark.parametrize("function", ["accuracy", "calibration_curve"])
def test_a_column_of_labels_is_refused(function):
    with pytest.raises(ValueError, match=r"one label.*\(2, 1\)"):
        getattr(evaluation, function)(jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([[0], [1]]))


@pytest.mark.parametrize(
    "function", ["accuracy", "calibration_curve", "expected_calibration_error"]
)
def test_labels_that_are_no_class_are_refused(function):
    """Counted from 1, as in R: no row would be right."""
    score = getattr(evaluation, function)
    probabilities = jnp.eye(3)
    for labels, label in (([1, 2, 3], "3"), ([0, -1, 2], "-1"), ([0, 1, np.nan], "nan")):
        for array in (np.array(labels), jnp.array(labels)):
            with pytest.raises(ValueError, match=f"labels must be 0 to 2, got {label}"):
                score(probabilities, array)
    labels = jnp.array([0, 1, 1])
    expected = score(probabilities, labels)
    for found in (
        jax.jit(score)(probabilities, labels),
        jax.jit(lambda p: score(p, labels))(probabilities),
    ):
        jax.tree.map(np.testing.assert_allclose, found, expected)


def test_scores_of_numbers_that_are_none_or_few_digits():
    nan = jnp.full((4, 3), jnp.nan)
    assert evaluation.accuracy(nan, jnp.array([0, 0, 1, 2])) == 0
    # A count in half precision stands still at 256.
    rng = np.random.default_rng(0)
    probabilities = jnp.asarray(rng.dirichlet([2.0, 1.0, 1.0], 5000), jnp.bfloat16)
    labels = jnp.asarray(rng.integers(0, 3, 5000))
    exact = evaluation.expected_calibration_error(probabilities.astype(jnp.float32), labels)
    found = evaluation.expected_calibration_error(probabilities, labels)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert evaluation.calibration_curve(probabilities, labels).count.sum() == 5000
    with pytest.raises(ValueError, match="num_bins must be an integer of at least 1, got 0"):
        evaluation.expected_calibration_error(probabilities, labels, num_bins=0)
    # Squares of integers overflow.
    found = evaluation.rmse(jnp.array([100_000, 0]), jnp.array([0, 0]))
    np.testing.assert_allclose(found, 1e5 / np.sqrt(2), rtol=1e-6)


def test_several_outputs_are_refused_where_rows_are_meant():
    with pytest.raises(ValueError, match=r"must have the shape \(rows,\), got \(10, 2\)"):
        evaluation.coverage(jnp.ones((10, 2)), [0.5, 0.9])
    draws, rows = jnp.zeros((1, 21)), jnp.ones((16, 1))
    for function in (evaluation.lppd, prediction.log_predictive_density):
        with pytest.raises(ValueError, match=r"must be a scalar, but it has the shape \(1,\)"):
            function(lambda x, row: -((row - x) ** 2), draws, rows)


def test_percentages_and_logits_are_refused():
    with pytest.raises(ValueError, match="levels must be between 0 and 1"):
        evaluation.coverage(jnp.linspace(0, 1, 10), [50, 90])
    with pytest.raises(ValueError, match=r"probability_transform must be .* got 50"):
        evaluation.coverage(jnp.array([0.5, 50.0]), 0.9)
    logits = jnp.array([[4.0, 0.5], [0.5, -3.0]])
    for score in (evaluation.expected_calibration_error, evaluation.calibration_curve):
        with pytest.raises(ValueError, match=r"probabilities must be between 0 and 1, got 4\.0"):
            score(logits, jnp.array([0, 1]))
    with pytest.raises(ValueError, match="probabilities must be between 0 and 1"):
        prediction.predictive_quantiles(
            jax.random.key(0), lambda *_: 0.0, jnp.zeros((2, 3)), jnp.zeros(2), [5, 95]
        )


def test_calibration_error_of_calibrated_probabilities():
    """Labels drawn from the probabilities: what is left is the noise of the bins."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 200_000)
    labels = (rng.uniform(size=p.size) > p).astype(int)
    probabilities = jnp.asarray(np.stack([p, 1 - p], 1), jnp.float32)
    error = float(evaluation.expected_calibration_error(probabilities, labels))
    # The mean of |noise| over the 8 bins in use is about sqrt(8 * p (1 - p) / n), 0.0027.
    assert error < 0.006
    overconfident = jnp.stack([p**0.25, 1 - p**0.25], 1)
    exact = np.mean(p**0.25 - p)
    np.testing.assert_allclose(
        evaluation.expected_calibration_error(overconfident, labels), exact, atol=0.006
    )


def test_coverage():
    """Of a calibrated model each level; of one too sure what the normal law says."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    y = rng.normal(size=100_000)
    levels = np.array([0.5, 0.8, 0.95])
    for scale in (1.0, 0.5):
        pit = norm.cdf(y / scale)
        exact = 2 * norm.cdf(scale * norm.ppf(0.5 + levels / 2)) - 1
        error = SIGMAS * np.sqrt(exact * (1 - exact) / len(y))
        np.testing.assert_array_less(np.abs(evaluation.coverage(pit, levels) - exact), error)


def test_coverage_of_a_conjugate_model():
    """Mean known up to the posterior N(0, 1), unit noise: F_r(y) from the draws is exact."""
    draws = jax.random.normal(jax.random.key(0), (4, 2000))
    y = np.sqrt(2) * np.random.default_rng(1).normal(size=4000).astype(np.float32)
    pit = prediction.predictive_mean(lambda x, y: jax.scipy.stats.norm.cdf(y, x), draws, y)
    # The error of F(y) from 8000 draws, 0.006 at most, moves a share by as much.
    error = SIGMAS * np.sqrt(0.9 * 0.1 / len(y)) + 0.01
    assert abs(float(evaluation.coverage(pit, 0.9)) - 0.9) < error


def test_coverage_of_numbers_that_are_none_is_none():
    assert jnp.isnan(evaluation.coverage(jnp.array([0.5, jnp.nan]), 1.0))


def test_rmse_refuses_what_would_broadcast():
    with pytest.raises(ValueError, match="differ in shape"):
        evaluation.rmse(jnp.zeros((3, 1)), jnp.zeros(3))


def test_rmse_of_times():
    """Seconds since 1970, which float32 knows to two minutes."""
    times = 1.7e9 + np.arange(3.0)
    np.testing.assert_allclose(evaluation.rmse(times + 2, times), 2, rtol=1e-6)


@functools.cache
def autoregressive(rho=0.9, num_chains=4, num_draws=4000):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num_chains, num_draws))
    x = np.zeros_like(noise)
    for t in range(1, num_draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return jnp.asarray(x, jnp.float32)


def test_effective_sample_size_of_predictions():
    """AR(1) with coefficient 0.9: n (1 - rho) / (1 + rho) effective draws, scale-free."""
    slopes = autoregressive()
    found = prediction_diagnostics(lambda a, x: a * x, slopes, jnp.array([0.1, 1.0, 100.0]))
    exact = slopes.shape[1] * 0.1 / 1.9
    np.testing.assert_allclose(found.ess, 4 * exact, rtol=0.35)
    np.testing.assert_allclose(found.ess_within, exact, rtol=0.5)
    np.testing.assert_allclose(found.rhat, 1, atol=0.02)
    assert found.rhat_within.shape == (3, 4)


def test_weights_that_permute_do_not_count_but_functions_that_differ_do():
    """Two units whose order differs between chains: one function, R-hat 1; then two functions."""
    noise = 0.1 * autoregressive(rho=0.0, num_draws=500)[..., None]
    order = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0]])[:, None]
    x = jnp.array([1.0, 2.0])

    def fn(w, x):
        return jnp.stack([jnp.sum(jnp.tanh(w * x)), jnp.sum(w)])

    same = prediction_diagnostics(fn, order + noise, x, batch_size=1)
    assert same.rhat.shape == (2, 2)
    assert np.all(same.rhat < 1.02)
    other = prediction_diagnostics(fn, order * order[:, :, :1] + noise, x)
    assert np.all(other.rhat > 1.5)
    assert np.all(other.ess < 20)
    assert np.all(other.rhat_within < 1.05)
    assert np.all(other.ess_within > 200)


def test_a_chain_that_drifts_shows_within():
    drift = jnp.linspace(0, 3, 500)[None] * jnp.array([[1.0], [0.0]])
    slopes = autoregressive(rho=0.0, num_chains=2, num_draws=500) + drift
    found = prediction_diagnostics(lambda a, x: a * x, slopes, jnp.ones(1))
    assert found.rhat_within[0, 0] > 1.2
    assert found.rhat_within[0, 1] < 1.05


def test_predictions_that_do_not_vary_have_no_r_hat():
    """Saturated in all chains, in the first one, in none."""
    slopes = autoregressive(rho=0.0) + jnp.array([[9.0], [0.0], [0.0], [0.0]])
    found = prediction_diagnostics(jnp.minimum, slopes, jnp.array([-99.0, 4.5, 99.0]))
    nowhere, first = [False] * 4, [True, False, False, False]
    for all_chains, each in ((found.rhat, found.rhat_within), (found.ess, found.ess_within)):
        np.testing.assert_array_equal(np.isnan(all_chains), [True, False, False])
        np.testing.assert_array_equal(np.isnan(each), [[True] * 4, first, nowhere])


def test_one_chain_and_too_few_draws():
    found = prediction_diagnostics(lambda a, x: a * x, autoregressive()[:1], jnp.ones(2))
    np.testing.assert_allclose(found.rhat, found.rhat_within[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.ess, found.ess_within[:, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="at least 8 draws"):
        prediction_diagnostics(lambda a, x: a * x, autoregressive()[:, :7], jnp.ones(2))
