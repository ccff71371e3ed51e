"""Floors by the curvature, and stiff directions, under every map that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.sgmcmc.gradients import logdensity_estimator

import blackjax_smile
from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import curvature_step
from blackjax_smile.preconditioners.floor import FLOOR
from helpers import ESTIMATORS, assert_moments, run

pytestmark = pytest.mark.numerics

NUM_ROWS, NUM_COEFFICIENTS = 2000, 8


def windows(name, noise_variance, curvature, offset=0.0, num_windows=5):
    """Windows of a chain with a normal law, independent draws of it ``offset`` deviations off.

    Returns the preconditioner before each of them and after the last.
    """
    V, H = jnp.asarray(noise_variance), jnp.asarray(curvature)
    estimator = ESTIMATORS[name](jnp.zeros(len(V)))

    @jax.jit
    def window(key, preconditioner):
        def body(carry, key):
            statistics, last_x, last_gradient = carry
            noise_key, position_key = jax.random.split(key)
            noise = V**0.5 * jax.random.normal(noise_key, V.shape)
            x = (jax.random.normal(position_key, V.shape) + offset) * H**-0.5
            gradient = noise - H * x
            statistics = estimator.update(statistics, noise, preconditioner.whiten(noise))
            # The displacement in whitened coordinates: F^{-1} of it.
            F = matrix_of(preconditioner)
            step = curvature_step(
                preconditioner,
                gradient - last_gradient,
                jnp.linalg.solve(F, x - last_x),
                preconditioner.whiten(gradient),
            )
            return (estimator.update_gradient(statistics, gradient, step), x, gradient), None

        start = (estimator.init_statistics(preconditioner), jnp.zeros_like(V), jnp.zeros_like(V))
        (statistics, _, _), _ = jax.lax.scan(body, start, jax.random.split(key, 4000))
        return estimator.fit(statistics, preconditioner)

    preconditioners = [estimator.init(V)]
    for key in jax.random.split(jax.random.key(0), num_windows):
        preconditioners.append(window(key, preconditioners[-1]))
    return preconditioners


def matrix_of(preconditioner):
    return jax.vmap(preconditioner.to_position, out_axes=1)(jnp.eye(6))


def floor_of(preconditioner):
    if hasattr(preconditioner, "floor"):
        return np.asarray(preconditioner.floor)
    return np.asarray(preconditioner.complement / preconditioner.scale**2)


@pytest.mark.parametrize("name", ["diagonal", "dense", "low_rank_estimate"])
def test_a_window_lowers_the_floor_to_a_share_of_the_curvature(name):
    """Noise of variance 1 and 1e-10, none at all, and a curvature of 1e-10 without noise.

    At first the floor is 1e-4 of the typical variance. It falls by a hundred in a window, to 0.25
    of 0.04 times the noise where there is some, and to ten times the curvature where there is none.
    """
    V = np.array([1.0, 1.0, 1.0, 1e-10, 0.0, 0.0])
    H = np.array([1e-2, 1e-2, 1e-2, 1e-12, 1e-12, 1e-10])
    preconditioners = windows(name, V, H)
    floors = list(map(floor_of, preconditioners))
    G = np.exp(np.mean(np.log(V[V > 0])))
    np.testing.assert_allclose(floors[0][3:], FLOOR * G, rtol=0.02)
    np.testing.assert_allclose(floors[1][3:5], 0.01 * FLOOR * G, rtol=0.02)
    # 4000 squares have their mean within 5 * sqrt(2 / 4000) of the expected one.
    expected = [0.25 * 0.04 * V[3], 10 * H[4], 10 * H[5]]
    np.testing.assert_allclose(floors[-1][3:], expected, rtol=0.12)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("name", ["diagonal", "dense", "low_rank_estimate"])
def test_stiff_parameters_are_softened(name, offset):
    """With noise and without, in the stationary law and 30 deviations away from it.

    What is stiff has, of the total noise, the curvature :math:`q - 1 + 0.1`, with :math:`q` the
    harmonic mean of one plus all curvatures; what is not is left alone, and the noise is white,
    complement included.
    """
    V = np.array([1.0, 4.0, 1.0, 1.0, 1e-2, 0.0])
    H = np.array([1e-2, 1e-2, 1e-2, 1e4, 1e4, 1e6])
    preconditioner = windows(name, V, H, offset)[-1]
    F = np.asarray(matrix_of(preconditioner), np.float64)
    curvature = np.diag(np.linalg.inv(F @ F.T)) ** -1 * H  # h_i = H_i / T_i, F F^T = T^-1
    np.testing.assert_allclose(curvature[:3], H[:3] / V[:3], rtol=0.15)
    typical = 1 / np.mean(1 / (1 + np.append(H[:3] / V[:3], [1e4, 1e6, 1e8])))
    np.testing.assert_allclose(curvature[3:], typical - 1 + 0.1, rtol=0.1)
    draws = jax.vmap(
        lambda key: preconditioner.refresh_noise(
            key, jnp.zeros(6), jnp.zeros(()), jnp.ones(()), _tree.random_normals
        )
    )(jax.random.split(jax.random.key(1), 20_000))
    total = np.cov(np.asarray(draws).T) + F.T @ np.diag(V) @ F
    assert np.linalg.eigvalsh(total)[0] > 0.85
    assert np.linalg.eigvalsh(total)[-1] < 1.15
    trace = float(preconditioner.complement_trace)
    np.testing.assert_allclose(np.trace(np.cov(np.asarray(draws).T)), trace, rtol=0.05)


@pytest.mark.parametrize("name", ["diagonal", "dense", "low_rank"])
def test_coefficients_held_by_their_prior(name):
    """Two of eight coefficients have a prior a thousand times as narrow as the data make them.

    From zero, in one vector. Means and variances of one chain are exact to 5 standard errors and
    5 %. (Without softening the chain does not arrive.)
    """
    deviations = jnp.ones(NUM_COEFFICIENTS).at[jnp.asarray([2, 5])].set(3e-5)
    states, mean, covariance = regression(
        name, lambda w: -0.5 * jnp.sum((w / deviations) ** 2), np.diag(1 / deviations**2)
    )
    assert_moments(states.position, mean, np.diag(covariance), 0.05, 0.05)


def test_a_soft_constraint_on_a_sum():
    """The sum of all coefficients is held to 1e-4: a direction that is no parameter."""
    d = NUM_COEFFICIENTS
    states, mean, covariance = regression(
        "dense",
        lambda w: -0.5 * jnp.sum(w**2) - 0.5 * (jnp.sum(w) / 1e-4) ** 2,
        np.eye(d) + np.ones((d, d)) / 1e-4**2,
    )
    assert_moments(states.position, mean, np.diag(covariance), 0.05, 0.05)
    draws = np.asarray(states.position, np.float64)
    basis = np.linalg.qr(np.column_stack([np.ones(d), np.eye(d)[:, 1:]]))[0]
    variance = np.diag(basis.T @ covariance @ basis)
    assert_moments((draws - mean) @ basis, 0, variance, 0.05, 0.05)


def regression(preconditioner, logprior, precision):
    """Adapt and run a chain on 2000 rows, batches of 100; also return the exact posterior."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(NUM_ROWS, NUM_COEFFICIENTS)).astype(np.float32)
    y = (X @ np.array([1, -1, 0, 0.5, -0.5, 0, 2, -2]) + rng.normal(size=NUM_ROWS)).astype("f4")
    logdensity_fn = logdensity_estimator(
        logprior, lambda w, row: -0.5 * (row[1] - row[0] @ w) ** 2, NUM_ROWS
    )
    covariance = np.linalg.inv(X.T.astype(np.float64) @ X + np.asarray(precision, np.float64))
    mean = covariance @ (X.T.astype(np.float64) @ y)
    sampler = blackjax_smile.minibatch_sampler((jnp.asarray(X), jnp.asarray(y)), 100)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, sampler, preconditioner=preconditioner
    )
    start = jnp.zeros(NUM_COEFFICIENTS)
    (state, parameters), _ = warmup.run(jax.random.key(0), start, 4000)
    algorithm = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), sampler
    )
    states, _ = run(algorithm, state, 40_000)
    return states, mean, covariance
