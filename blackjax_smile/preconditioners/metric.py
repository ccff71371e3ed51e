"""What BlackJAX's own integrators need of a preconditioner."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jax.flatten_util import ravel_pytree

from blackjax_smile.preconditioners.base import Preconditioner
from blackjax_smile.preconditioners.dense import DensePreconditioner
from blackjax_smile.preconditioners.diagonal import DiagonalPreconditioner
from blackjax_smile.preconditioners.fixed import (
    FlatDiagonalPreconditioner,
    LowRankPreconditioner,
    ScalarPreconditioner,
    as_preconditioner,
)

__all__ = ["Metric", "as_metric"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
    """A preconditioner and the same map in BlackJAX's terms.

    preconditioner
        What refreshes the momentum and whitens gradients.
    inverse_mass_matrix
        A scalar, a vector or a ``LowRankInverseMassMatrix``, with the same factor.
    """

    preconditioner: Preconditioner
    inverse_mass_matrix: Any


def as_metric(inverse_mass_matrix: Any) -> Metric:
    """Return what BlackJAX's isokinetic integrators take in place of a preconditioner.

    They know no matrix, but a low-rank one of full rank is one: it has the
    symmetric factor, by which a dense preconditioner's own is replaced.

    Raises
    ------
    ValueError
        If BlackJAX's integrators cannot apply this kind of preconditioner.
    """
    if isinstance(inverse_mass_matrix, Metric):
        return inverse_mass_matrix
    preconditioner = as_preconditioner(inverse_mass_matrix)
    match preconditioner:
        case ScalarPreconditioner(scale=scale) | FlatDiagonalPreconditioner(scale=scale):
            return Metric(preconditioner, scale**2)
        case DiagonalPreconditioner(scale=scale):
            return Metric(preconditioner, ravel_pytree(scale)[0] ** 2)
        case LowRankPreconditioner(sigma=sigma, U=U, sqrt_lam=sqrt_lam):
            return Metric(preconditioner, LowRankInverseMassMatrix(sigma, U, sqrt_lam**2))
        case DensePreconditioner(factor=factor):
            # By singular values: squaring the factor first would lose half the digits.
            U, sqrt_lam, _ = jnp.linalg.svd(factor)
            symmetric = dataclasses.replace(preconditioner, factor=(U * sqrt_lam[None]) @ U.T)
            ones = jnp.ones_like(sqrt_lam)
            return Metric(symmetric, LowRankInverseMassMatrix(ones, U, sqrt_lam**2))
        case _:
            raise ValueError(
                f"BlackJAX's integrators cannot apply a {type(preconditioner).__name__}. "
                "Use the default integrator (integrator=None)."
            )
