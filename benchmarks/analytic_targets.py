"""Targets with exact second moments, and gradient noise of known structure, d = 10.

Targets and noise of the analytic benchmark of arXiv:2602.06500. Nothing is copied:
every moment is computed here, in closed form or by Gauss-Hermite quadrature.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

D = 10
NOISE_SCALE = 16.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A log-density with its exact moments.

    square, fourth
        E[x_i^2] and E[x_i^4].
    covariance
        Exact covariance; ``deviations`` is what scales anisotropic noise.
    draw
        Exact draws, to start chains and to check the moments.
    """

    name: str
    logdensity_fn: Callable
    square: np.ndarray
    fourth: np.ndarray
    covariance: np.ndarray
    deviations: np.ndarray
    draw: Callable

    def b2(self, second_moments) -> np.ndarray:
        """Return mean_i (E[x_i^2] - exact)^2 / Var[x_i^2]."""
        error = np.asarray(second_moments, np.float64) - self.square
        return np.mean(error**2 / (self.fourth - self.square**2), axis=-1)


def _normal_moment(mean: float, deviation: float, function) -> float:
    """Return E[function(x)] for a normal x, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(np.sum(weights * function(mean + deviation * nodes)) / np.sqrt(2 * np.pi))


def gaussian(seed: int = 0) -> Target:
    """Rotated normal law, standard deviations log-spaced from 0.1 to 10."""
    deviations = np.logspace(-1, 1, D)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))
    covariance = rotation @ np.diag(deviations**2) @ rotation.T
    precision = jnp.asarray(rotation @ np.diag(deviations**-2.0) @ rotation.T, jnp.float32)
    factor = jnp.asarray(rotation * deviations, jnp.float32)
    square = np.diag(covariance)
    return Target(
        "gaussian",
        lambda x: -0.5 * x @ precision @ x,
        square,
        3 * square**2,
        covariance,
        deviations,
        lambda key: factor @ jax.random.normal(key, (D,)),
    )


def funnel() -> Target:
    """First coordinate N(0, 3^2), the others N(0, exp(first))."""
    square = np.full(D, np.exp(4.5))
    fourth = np.full(D, 3 * np.exp(18.0))
    square[0], fourth[0] = 9.0, 3 * 81.0

    def logdensity_fn(x):
        rest = x[1:]
        return -(x[0] ** 2) / 18 - 0.5 * jnp.exp(-x[0]) * rest @ rest - 0.5 * (D - 1) * x[0]

    def draw(key):
        z = jax.random.normal(key, (D,))
        first = 3 * z[:1]
        return jnp.concatenate([first, jnp.exp(first / 2) * z[1:]])

    covariance = np.diag(square)
    return Target("funnel", logdensity_fn, square, fourth, covariance, np.sqrt(square), draw)


def rosenbrock() -> Target:
    """x_i ~ N(1, 1) and y_i | x_i ~ N(x_i^2, variance 0.1), five pairs."""
    variance = 0.1

    def moment(power):
        return _normal_moment(1.0, 1.0, lambda x: x**power)

    y4 = moment(8) + 6 * variance * moment(4) + 3 * variance**2
    square = np.repeat([moment(2), moment(4) + variance], D // 2)
    fourth = np.repeat([moment(4), y4], D // 2)
    eye = np.eye(D // 2)
    cross = moment(3) - moment(1) * moment(2)
    covariance = np.block(
        [
            [eye, cross * eye],
            [cross * eye, (moment(4) + variance - moment(2) ** 2) * eye],
        ]
    )

    def logdensity_fn(z):
        x, y = z[: D // 2], z[D // 2 :]
        return -0.5 * jnp.sum((x - 1) ** 2) - 0.5 * jnp.sum((y - x**2) ** 2) / variance

    def draw(key):
        z = jax.random.normal(key, (2, D // 2))
        x = 1 + z[0]
        return jnp.concatenate([x, x**2 + np.sqrt(variance) * z[1]])

    deviations = np.sqrt(np.diag(covariance))
    return Target("rosenbrock", logdensity_fn, square, fourth, covariance, deviations, draw)


def banana() -> Target:
    """x ~ N(0, 10^2), y | x ~ N(0.03 (x^2 - 100), 1), and eight standard normals."""
    b, s = 0.03, 10.0

    def moment(function):
        return _normal_moment(0.0, s, function)

    def center(x):
        return b * (x**2 - s**2)

    square, fourth = np.ones(D), np.full(D, 3.0)
    square[0], fourth[0] = s**2, 3 * s**4
    square[1] = moment(lambda x: center(x) ** 2) + 1
    fourth[1] = moment(lambda x: center(x) ** 4 + 6 * center(x) ** 2 + 3)

    def logdensity_fn(z):
        return (
            -0.5 * (z[0] / s) ** 2
            - 0.5 * (z[1] - b * (z[0] ** 2 - s**2)) ** 2
            - 0.5 * z[2:] @ z[2:]
        )

    def draw(key):
        z = jax.random.normal(key, (D,))
        x = s * z[0]
        return z.at[0].set(x).at[1].add(b * (x**2 - s**2))

    covariance = np.diag(square)
    return Target("banana", logdensity_fn, square, fourth, covariance, np.sqrt(square), draw)


def grid() -> Target:
    """5 x 5 normal laws (deviation 0.5, spacing 2) in two coordinates; standard normals."""
    centers = 2.0 * np.arange(-2, 3)
    s = 0.5

    def moment(power):
        return float(np.mean([_normal_moment(c, s, lambda x: x**power) for c in centers]))

    square, fourth = np.ones(D), np.full(D, 3.0)
    square[:2], fourth[:2] = moment(2), moment(4)
    points = jnp.asarray(centers, jnp.float32)

    def logdensity_fn(z):
        mixture = jax.nn.logsumexp(-0.5 * ((z[:2, None] - points[None]) / s) ** 2, axis=1)
        return jnp.sum(mixture) - 0.5 * z[2:] @ z[2:]

    def draw(key):
        mode_key, key = jax.random.split(key)
        z = jax.random.normal(key, (D,))
        return z.at[:2].set(s * z[:2] + jax.random.choice(mode_key, points, (2,)))

    covariance = np.diag(square)
    return Target("grid", logdensity_fn, square, fourth, covariance, np.sqrt(square), draw)


TARGETS = {f.__name__: f for f in (gaussian, funnel, rosenbrock, banana, grid)}

#: Unit-variance draws by law; rows of shape (d,).
LAWS = {
    "normal": lambda key: jax.random.normal(key, (D,)),
    "laplace": lambda key: jax.random.laplace(key, (D,)) / np.sqrt(2),
    "student5": lambda key: jax.random.t(key, 5.0, (D,)) / np.sqrt(5 / 3),
    "lognormal": lambda key: (
        (jnp.exp(jax.random.normal(key, (D,))) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    ),
}

STRUCTURES = ("isotropic", "anisotropic", "correlated", "varying")


def noise_model(target: Target, structure: str, law: str = "normal"):
    """Return ``logdensity_fn(x, minibatch)`` and ``minibatch_fn(rng_key, num_rows)``.

    A minibatch holds rows of noise whose mean has the wanted variance, so that its
    halves are minibatches of twice the variance, as with data.
    """
    matrix = {
        "isotropic": np.eye(D),
        "anisotropic": np.diag(target.deviations),
        "correlated": np.linalg.cholesky(target.covariance),
        "varying": np.linalg.cholesky(target.covariance),
    }[structure]
    root = jnp.asarray(NOISE_SCALE * matrix, jnp.float32)

    def minibatch_fn(rng_key, num_rows: int = 1):
        rows = jax.vmap(LAWS[law])(jax.random.split(rng_key, num_rows))
        return np.sqrt(num_rows) * rows @ root.T

    def logdensity_fn(x, minibatch):
        linear = jnp.mean(minibatch, axis=0) @ x
        if structure == "varying":
            linear *= jnp.exp(-x[2] / 6.5)
        return target.logdensity_fn(x) + linear

    return logdensity_fn, minibatch_fn
