"""Models with known posteriors, and the tests of draws against them.

False alarms: `assert_moments` compares each moment with its exact value at
`SIGMAS` standard errors, whose size follows from the effective sample size. At 5
standard errors a normal statistic fails with probability 6e-7, so a suite of a
thousand such comparisons raises a false alarm with probability below 1e-3. Seeds
are fixed: a test that passes once passes always on the same software.
"""

import dataclasses
import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import blackjax_smile
from blackjax_smile.preconditioners import (
    dense_estimator,
    diagonal_estimator,
    identity_estimator,
    kronecker_estimator,
    low_rank_estimator,
)

SIGMAS = 5.0


@dataclasses.dataclass(frozen=True)
class LinearRegression:
    """Normal linear regression with unit noise and a standard normal prior.

    The posterior is N(mean, covariance), exactly. ``spread`` is the ratio of the
    largest to the smallest scale of the (rotated) covariates.
    """

    d: int = 5
    data_size: int = 4000
    spread: float = 10.0
    seed: int = 0

    @functools.cached_property
    def data(self):
        rng = np.random.default_rng(self.seed)
        scales = self.spread ** np.linspace(-0.5, 0.5, self.d)
        rotation, _ = np.linalg.qr(rng.normal(size=(self.d, self.d)))
        X = (rng.normal(size=(self.data_size, self.d)) * scales) @ rotation.T
        y = X @ rng.normal(size=self.d) + rng.normal(size=self.data_size)
        return X.astype(np.float32), y.astype(np.float32)

    @functools.cached_property
    def posterior(self):
        X, y = (a.astype(np.float64) for a in self.data)
        covariance = np.linalg.inv(X.T @ X + np.eye(self.d))
        return covariance @ X.T @ y, covariance

    @property
    def mode(self):
        return jnp.asarray(self.posterior[0], jnp.float32)

    # The same function at every call: a second run of `sample` compiles nothing.
    @functools.cached_property
    def logdensity_fn(self):
        def loglikelihood(theta, row):
            x, y = row
            return -0.5 * (y - x @ theta) ** 2

        return blackjax.sgmcmc.gradients.logdensity_estimator(
            lambda theta: -0.5 * theta @ theta, loglikelihood, self.data_size
        )

    def minibatch_fn(self, batch_size):
        return blackjax_smile.minibatch_sampler(self.data, batch_size)


def gaussian(covariance):
    """Return the log-density of a centred normal law."""
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    return lambda x: -0.5 * x @ precision @ x


def run(algorithm, state, num_steps, seed=0):
    """Return the history of states and infos."""
    _, history = blackjax.util.run_inference_algorithm(
        jax.random.key(seed), algorithm, num_steps, initial_state=state
    )
    return history


def sample(logdensity_fn, minibatch_fn, position, num_warmup, num_steps, seed=0, **options):
    """Adapt and sample as a user does; return positions, infos, parameters, adaptation info."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, **options
    )
    warmup_key, run_key = jax.random.split(jax.random.key(seed))
    (state, parameters), info = warmup.run(warmup_key, position, num_steps=num_warmup)
    algorithm = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn
    )
    _, (states, infos) = blackjax.util.run_inference_algorithm(
        run_key, algorithm, num_steps, initial_state=state
    )
    return states.position, infos, parameters, info


def assert_moments(draws, mean, variance, bias_mean=0.0, bias_variance=0.0):
    """Compare means and variances of one chain's draws ``(n, d)`` with exact values.

    ``bias_mean`` (in posterior deviations) and ``bias_variance`` (relative) are
    what an unadjusted sampler may be off, on top of the Monte Carlo error.
    """
    draws = np.asarray(draws, np.float64)
    centred = draws - mean
    ess_mean = np.asarray(blackjax.ess(jnp.asarray(centred, jnp.float32)[None]))
    squares = centred**2
    ess_variance = np.asarray(
        blackjax.ess(jnp.asarray(squares / squares.mean(0), jnp.float32)[None])
    )
    assert np.all(ess_mean > 50), f"too few effective draws to say anything: {ess_mean}"
    z_mean = np.abs(centred.mean(0)) / np.sqrt(variance)
    np.testing.assert_array_less(z_mean, bias_mean + SIGMAS / np.sqrt(ess_mean))
    ratio_error = np.abs(squares.mean(0) / variance - 1)
    deviation = squares.std(0) / variance / np.sqrt(ess_variance)
    np.testing.assert_array_less(ratio_error, bias_variance + SIGMAS * deviation)


#: Every estimator, for the suites that all of them must pass.
ESTIMATORS = {
    "identity": lambda position: identity_estimator(position, spectrum_limit=50),
    "diagonal": lambda position: diagonal_estimator(spectrum_limit=50),
    "dense": lambda position: dense_estimator(),
    "kronecker": lambda position: kronecker_estimator(),
    "low_rank_estimate": lambda position: low_rank_estimator(num_directions=2),
}

#: Positions of every shape that a user has.
POSITIONS = {
    "array": lambda dtype: jnp.arange(1.0, 7.0, dtype=dtype),
    "dict": lambda dtype: {"w": jnp.ones((2, 2), dtype), "b": jnp.zeros(2, dtype)},
    "nested": lambda dtype: {
        "layers": [{"kernel": jnp.ones((2, 1), dtype)}, (jnp.zeros(3, dtype),)],
        "log_scale": jnp.zeros((), dtype),
    },
    "scalars": lambda dtype: {k: jnp.zeros((), dtype) for k in "abcdef"},
}
