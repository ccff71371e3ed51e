"""Linear maps that whiten the gradient noise."""

from blackjax_smile.preconditioners.base import Preconditioner, PreconditionerEstimator
from blackjax_smile.preconditioners.dense import DensePreconditioner, dense_estimator
from blackjax_smile.preconditioners.diagonal import DiagonalPreconditioner, diagonal_estimator
from blackjax_smile.preconditioners.fixed import (
    FlatDiagonalPreconditioner,
    LowRankPreconditioner,
    ScalarPreconditioner,
    as_preconditioner,
)
from blackjax_smile.preconditioners.identity import identity_estimator
from blackjax_smile.preconditioners.kronecker import (
    KroneckerPreconditioner,
    kronecker_estimator,
)
from blackjax_smile.preconditioners.low_rank import (
    EstimatedLowRankPreconditioner,
    low_rank_estimator,
)

__all__ = [
    "DensePreconditioner",
    "DiagonalPreconditioner",
    "EstimatedLowRankPreconditioner",
    "FlatDiagonalPreconditioner",
    "KroneckerPreconditioner",
    "LowRankPreconditioner",
    "Preconditioner",
    "PreconditionerEstimator",
    "ScalarPreconditioner",
    "as_preconditioner",
    "dense_estimator",
    "diagonal_estimator",
    "identity_estimator",
    "kronecker_estimator",
    "low_rank_estimator",
]
