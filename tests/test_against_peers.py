"""A short version of benchmarks/logistic_regression.py, with an exact posterior."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm

import blackjax_smile
from helpers import LinearRegression, sample

pytestmark = pytest.mark.numerics

PROBLEM = LinearRegression(d=10, spread=30.0)
NUM_GRADIENTS = 22_000


def error(draws):
    """b2mean + b2var of one chain's draws."""
    mean, covariance = PROBLEM.posterior
    variance = np.diag(covariance)
    draws = np.asarray(draws, np.float64)
    b2mean = np.mean((draws.mean(0) - mean) ** 2 / variance)
    return b2mean + np.mean((draws.var(0) / variance - 1) ** 2) / 2


@pytest.fixture(scope="module")
def smile_error():
    draws, *_ = sample(
        PROBLEM.logdensity_fn, PROBLEM.minibatch_fn(100), PROBLEM.mode, 2000, NUM_GRADIENTS - 2000
    )
    return error(draws)


@pytest.mark.parametrize("name", ["sgld", "sghmc"])
def test_smile_untuned_beats_the_best_of_a_grid(name, smile_error):
    """At equal gradients, from the mode, against the best of nine step sizes.

    Over eight other seeds the best of the grid was 4.1 to 64 times worse (sgld; 16 to
    105 times, sghmc). The logarithm of that ratio had mean 2.1 and deviation 0.85 at
    least: were the seed not fixed, a false alarm would come once in about 150 runs.
    """
    algorithm = getattr(blackjax, name)(jax.grad(PROBLEM.logdensity_fn))
    grid = jnp.geomspace(1e-7, 1e-4, 9) if name == "sgld" else jnp.geomspace(1e-5, 3e-3, 9)
    num_steps = NUM_GRADIENTS if name == "sgld" else NUM_GRADIENTS // 10

    @jax.jit
    @jax.vmap
    def chain(step_size):
        bound = blackjax_smile.with_minibatches(algorithm, PROBLEM.minibatch_fn(100), step_size)
        _, (positions, _) = run_inference_algorithm(
            jax.random.key(0), bound, num_steps, initial_position=PROBLEM.mode
        )
        return positions

    errors = [error(draws) if jnp.all(jnp.isfinite(draws)) else np.inf for draws in chain(grid)]
    best = int(np.argmin(errors))
    # At the small end sghmc hardly moves, which for some seeds is its best.
    assert best < len(grid) - 1, f"the grid ends before the best step size: {errors}"
    assert smile_error < errors[best]
