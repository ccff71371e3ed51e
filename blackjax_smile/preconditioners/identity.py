"""No preconditioning, with the noise still watched: the baseline."""

import jax.numpy as jnp
from blackjax.types import ArrayTree
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import PreconditionerEstimator
from blackjax_smile.preconditioners.fixed import ScalarPreconditioner
from blackjax_smile.preconditioners.moments import (
    NoiseMoments,
    eigenvalue_range,
    init_moments,
    update_moments,
)

__all__ = ["identity_estimator"]


def identity_estimator(like: ArrayTree, spectrum_limit: int) -> PreconditionerEstimator:
    """Keep :math:`F = I` and follow the noise only to report it.

    Parameters
    ----------
    like
        A tree in the shapes of the position.
    spectrum_limit
        As in `diagonal_estimator`.
    """

    def init(variance: ArrayTree) -> ScalarPreconditioner:
        return ScalarPreconditioner(jnp.ones((), _tree.scalar_dtype(variance)))

    def init_statistics(preconditioner: ScalarPreconditioner) -> NoiseMoments:
        del preconditioner
        return init_moments(like, with_outer=pytree_size(like) <= spectrum_limit)

    def fit(moments: NoiseMoments, preconditioner: ScalarPreconditioner) -> ScalarPreconditioner:
        del moments
        return preconditioner

    def noise_eigenvalues(moments: NoiseMoments, preconditioner: ScalarPreconditioner):
        del preconditioner
        return eigenvalue_range(moments)

    return PreconditionerEstimator(init, init_statistics, update_moments, fit, noise_eigenvalues)
