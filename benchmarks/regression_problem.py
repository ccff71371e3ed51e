"""Bayesian logistic regression with an ill-conditioned posterior, and its reference."""

import dataclasses
import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """One generated regression.

    Covariates are normal with log-spaced standard deviations (``spread`` from the
    smallest to the largest, geometric mean 1) along randomly rotated axes; the
    prior is standard normal. With an ``intercept`` the first covariate is 1 and the
    intercept its coefficient: -5.6 makes positives rare.
    """

    d: int = 20
    data_size: int = 20_000
    spread: float = 30.0
    column_scales: tuple[float, ...] = ()
    intercept: float | None = None
    seed: int = 0

    @functools.cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        scales = self.spread ** np.linspace(-0.5, 0.5, self.d)
        rotation, _ = np.linalg.qr(rng.normal(size=(self.d, self.d)))
        X = (rng.normal(size=(self.data_size, self.d)) * scales) @ rotation.T
        # Coefficients for which every axis moves the logit alike.
        theta = rotation @ (rng.normal(size=self.d) / scales) / np.sqrt(self.d)
        if self.intercept is not None:
            X[:, 0], theta[0] = 1, self.intercept
        y = rng.random(self.data_size) < 1 / (1 + np.exp(-X @ theta))
        for column, scale in enumerate(self.column_scales):
            X[:, column] *= scale
        return X.astype(np.float32), y.astype(np.float32)

    @property
    def logdensity_fn(self):
        """Minibatch estimate of the log-density."""
        return blackjax.sgmcmc.gradients.logdensity_estimator(
            logprior, loglikelihood, self.data_size
        )

    @property
    def grad_fn(self):
        """Minibatch estimate of its gradient, for BlackJAX's own samplers."""
        return blackjax.sgmcmc.gradients.grad_estimator(logprior, loglikelihood, self.data_size)

    def minibatch_fn(self, batch_size: int):
        from blackjax_smile import minibatch_sampler

        return minibatch_sampler(self.data, batch_size)

    @functools.cached_property
    def mode(self) -> np.ndarray:
        X, y = (a.astype(np.float64) for a in self.data)
        sign = 1 - 2 * y

        def value_and_grad(theta):
            margin = sign * (X @ theta)
            value = np.logaddexp(0, margin).sum() + 0.5 * theta @ theta
            return value, X.T @ (sign / (1 + np.exp(-margin))) + theta

        # Newton's method: the problem is convex and ill-conditioned.
        theta = np.zeros(self.d)
        for _ in range(50):
            value, grad = value_and_grad(theta)
            direction = -np.linalg.solve(self.precision(theta), grad)
            step = 1.0
            while value_and_grad(theta + step * direction)[0] > value and step > 1e-6:
                step /= 2
            theta = theta + step * direction
        return theta

    def precision(self, theta: np.ndarray) -> np.ndarray:
        """Negative Hessian of the log-posterior."""
        X = self.data[0].astype(np.float64)
        p = 1 / (1 + np.exp(-X @ theta))
        return (X * (p * (1 - p))[:, None]).T @ X + np.eye(self.d)

    @functools.cached_property
    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means and variances from a long full-batch run of NUTS.

        NUTS runs in the coordinates of the Laplace approximation, where the
        posterior is close to a standard normal: 4 chains of 2500 draws whose
        bulk ESS is asserted.
        """
        covariance = np.linalg.inv(self.precision(self.mode))
        factor = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
        mode = jnp.asarray(self.mode, jnp.float32)
        X, y = map(jnp.asarray, self.data)
        sign = 1 - 2 * y
        # Differences from the mode keep float32 exact where it matters.
        logit_at_mode = X @ mode

        def logdensity(z):
            shift = factor @ z
            logits = logit_at_mode + X @ shift
            theta = mode + shift
            gain = jnp.logaddexp(0, sign * logits) - jnp.logaddexp(0, sign * logit_at_mode)
            return -jnp.sum(gain) - 0.5 * theta @ theta

        nuts = blackjax.nuts(logdensity, 0.5, jnp.ones(self.d))

        @jax.jit
        def chain(key):
            start, run = jax.random.split(key)
            state = nuts.init(jax.random.normal(start, (self.d,)))
            _, (states, _) = blackjax.util.run_inference_algorithm(
                run, nuts, 2600, initial_state=state
            )
            return states.position[100:]

        draws = np.stack([chain(k) for k in jax.random.split(jax.random.key(99), 4)])
        ess = np.asarray(blackjax.ess(jnp.asarray(draws)))
        assert ess.min() > 4000, f"the reference is too short: ESS {ess.min():.0f}"
        theta = (
            self.mode
            + draws.reshape(-1, self.d).astype(np.float64) @ np.asarray(factor, np.float64).T
        )
        return theta.mean(0), theta.var(0)


def logprior(theta):
    return -0.5 * jnp.sum(theta**2)


def loglikelihood(theta, row):
    x, y = row
    return -jnp.logaddexp(0, (1 - 2 * y) * (x @ theta))


def errors(mean, variance, reference) -> dict[str, float]:
    """Return the errors of means and variances: b2mean, b2var and the mean ratio."""
    true_mean, true_variance = reference
    ratio = variance / true_variance
    return {
        "b2mean": float(np.mean((mean - true_mean) ** 2 / true_variance)),
        "b2var": float(np.mean((ratio - 1) ** 2) / 2),
        "ratio": float(np.mean(ratio)),
    }
