"""How the chains of a run of `sample` compare with a posterior that is known."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import blackjax_smile


def scores(z: np.ndarray, result: blackjax_smile.SampleResult) -> dict[str, float]:
    """Return the errors of draws, shape (chain, draw, ...), in units of the exact posterior.

    ``z`` is their distance from its mean in its deviations; ``result`` is the run they are of.
    """
    b2 = z.mean(axis=(0, 1)) ** 2
    ess = blackjax.ess(jnp.asarray(z, jnp.float32))
    return {
        "arrived": float(np.max(np.abs(z[:, 0]))),
        "b2mean": float(np.mean(b2)),
        "largest b2": float(np.max(b2)),
        "ratio": float(np.mean(z.var(axis=(0, 1)))),
        "min ess": float(jnp.min(ess)),
        "median ess": float(jnp.median(ess)),
        "anisotropy": float(np.mean(result.adaptation.windows.anisotropy[:, -1])),
    }


def flat(draws) -> np.ndarray:
    """Return the draws of a tree as one array, shape (chain, draw, d)."""
    return np.asarray(jax.vmap(jax.vmap(lambda p: ravel_pytree(p)[0]))(draws), np.float64)


def differences(draws: np.ndarray, mean, deviation) -> dict:
    """Return the largest shift of a mean, in deviations, and the range of the deviations."""
    ratio = draws.std((0, 1)) / deviation
    shift = (draws.mean((0, 1)) - mean) / deviation
    return {
        "shift": float(np.max(np.abs(shift))),
        "deviations": f"{ratio.min():.2f} to {ratio.max():.2f}",
    }
