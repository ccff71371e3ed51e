"""The low-rank preconditioner on noise with a few strong directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

from blackjax_smile.preconditioners import as_preconditioner, low_rank_estimator
from blackjax_smile.preconditioners.metric import as_metric

pytestmark = pytest.mark.numerics

D, STRONG = 40, 3


def spiked(seed=0, strength=100.0):
    """A covariance of unit variances but for a few strong directions, on scales 1 to 10."""
    rng = np.random.default_rng(seed)
    U, _ = np.linalg.qr(rng.normal(size=(D, STRONG)))
    C = np.eye(D) + U @ np.diag(strength * np.arange(1, STRONG + 1)) @ U.T
    scales = np.geomspace(1.0, 10.0, D)
    return C * np.outer(scales, scales)


def fit(V, num_draws=4000, num_windows=3, num_directions=6):
    root = jnp.asarray(np.linalg.cholesky(V), jnp.float32)
    estimator = low_rank_estimator(num_directions)
    preconditioner = estimator.init(jnp.asarray(np.diag(V), jnp.float32))

    @jax.jit
    def window(key, preconditioner):
        def body(sketch, key):
            noise = root @ jax.random.normal(key, (D,))
            return estimator.update(sketch, noise, preconditioner.whiten(noise)), None

        start = estimator.init_statistics(preconditioner)
        sketch, _ = jax.lax.scan(body, start, jax.random.split(key, num_draws))
        return estimator.fit(sketch, preconditioner)

    for key in jax.random.split(jax.random.key(0), num_windows):
        preconditioner = window(key, preconditioner)
    return preconditioner


def matrix(preconditioner):
    F = jax.vmap(preconditioner.to_position, out_axes=1)(jnp.eye(D))
    return np.asarray(F, np.float64)


def relative_spread(preconditioner, V):
    """Relative standard deviation of the whitened covariance's eigenvalues: the anisotropy."""
    F = matrix(preconditioner)
    eigenvalues = np.linalg.eigvalsh(F.T @ (V + np.diag(preconditioner.floor)) @ F)
    return np.std(eigenvalues) / np.mean(eigenvalues), eigenvalues


@pytest.mark.parametrize("strength", [10.0, 1000.0])
def test_strong_directions_are_whitened(strength):
    """A spread of eigenvalues of several times their mean falls to a fraction of it.

    Not to nothing: the diagonal has scaled the other directions too, by what the
    strong ones contribute to each variance.
    """
    V = spiked(strength=strength)
    scale = 1 / np.sqrt(np.diag(V))
    before = np.linalg.eigvalsh(V * np.outer(scale, scale))
    spread, _ = relative_spread(fit(V), V)
    assert spread < 0.35 * np.std(before) / np.mean(before)


def test_white_noise_is_left_alone():
    """No eigenvalue of 400 draws of white noise counts as a direction."""
    preconditioner = fit(np.eye(D), num_draws=400, num_windows=1)
    # The edge is crossed by chance only by order d^(-2/3).
    np.testing.assert_allclose(preconditioner.sqrt_lam, 1, atol=0.25)
    assert np.mean(np.asarray(preconditioner.sqrt_lam) == 1) >= 0.5


def test_it_is_blackjaxs_own_type():
    preconditioner = fit(spiked())
    given = preconditioner.inverse_mass_matrix
    assert isinstance(given, LowRankInverseMassMatrix)
    F, G = matrix(preconditioner), matrix(as_preconditioner(given))
    np.testing.assert_allclose(F, G, rtol=1e-4, atol=1e-6)
    assert isinstance(as_metric(preconditioner).inverse_mass_matrix, LowRankInverseMassMatrix)


def test_no_noise_keeps_the_old_map():
    estimator = low_rank_estimator(4)
    old = estimator.init(jnp.ones(D))
    new = estimator.fit(estimator.init_statistics(old), old)
    np.testing.assert_array_equal(matrix(new), matrix(old))


def test_silent_parameters_are_floored():
    V = spiked()
    V[[1, 7]] = V[:, [1, 7]] = 0
    preconditioner = fit(V + 1e-30 * np.eye(D))
    assert np.all(np.isfinite(matrix(preconditioner)))
    _, eigenvalues = relative_spread(preconditioner, V)
    assert eigenvalues[0] > 0.05 * np.mean(eigenvalues)
