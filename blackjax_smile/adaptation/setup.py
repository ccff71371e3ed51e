"""Setting up an adaptation: which preconditioner, how minibatches are split, checks."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import ArrayTree
from blackjax.util import pytree_size

from blackjax_smile.adaptation.energy_variance import ENERGY_VARIANCE
from blackjax_smile.adaptation.pooling import SEPARATE, Pool
from blackjax_smile.adaptation.schedule import Schedule
from blackjax_smile.adaptation.step_size import DEFLECTION
from blackjax_smile.adaptation.windows import WindowedAdaptation
from blackjax_smile.preconditioners.base import PreconditionerEstimator
from blackjax_smile.preconditioners.dense import DRAWS_PER_PARAMETER, dense_estimator
from blackjax_smile.preconditioners.diagonal import diagonal_estimator
from blackjax_smile.preconditioners.identity import identity_estimator
from blackjax_smile.preconditioners.kronecker import kronecker_estimator
from blackjax_smile.preconditioners.low_rank import low_rank_estimator

__all__ = ["PRECONDITIONERS", "build_adaptation", "check_algorithm", "check_options"]

PRECONDITIONERS = ("auto", "identity", "diagonal", "dense", "kronecker", "low_rank")
TUNERS = {"deflection": DEFLECTION, "energy_variance": ENERGY_VARIANCE}


def check_algorithm(algorithm: Any) -> None:
    """Raise unless it is an algorithm like `blackjax_smile.smile`, not one already built.

    Its kernel splits minibatches in parts, which those of other samplers do not.
    """
    build_kernel = getattr(algorithm, "build_kernel", None)
    splits = build_kernel is not None and "num_parts" in inspect.signature(build_kernel).parameters
    if not (hasattr(algorithm, "init") and splits):
        raise ValueError(
            "algorithm must be blackjax_smile.smile itself, not what smile(...) returns or another "
            f"sampler, got {type(algorithm).__name__}."
        )


def check_options(
    preconditioner: str | PreconditionerEstimator,
    target_deflection: float,
    tuner: str = "deflection",
) -> None:
    """Raise for an unknown preconditioner or tuner, or a target outside (0, 1]."""
    if tuner not in TUNERS:
        raise ValueError(f"tuner must be one of {tuple(TUNERS)}, got {tuner!r}.")
    if not isinstance(preconditioner, PreconditionerEstimator) and (
        preconditioner not in PRECONDITIONERS
    ):
        raise ValueError(
            f"preconditioner must be one of {PRECONDITIONERS}, got {preconditioner!r}."
        )
    if not 0 < target_deflection <= 1:
        raise ValueError(f"target_deflection must be in (0, 1] radians, got {target_deflection}.")


def build_adaptation(
    algorithm: Any,
    logdensity_fn: Callable,
    position: ArrayTree,
    schedule: Schedule,
    minibatch: ArrayTree,
    *,
    preconditioner: str | PreconditionerEstimator = "auto",
    target_deflection: float = 0.25,
    tuner: str = "deflection",
    pool: Pool = SEPARATE,
    dense_limit: int = 1000,
    spectrum_limit: int = 200,
) -> WindowedAdaptation:
    """Return the adaptation of an algorithm to a model, as pure functions.

    Parameters
    ----------
    algorithm, logdensity_fn, preconditioner, target_deflection, tuner, dense_limit, spectrum_limit
        See `blackjax_smile.smile_adaptation`.
    pool
        What the chains share.
    position, minibatch
        Examples, whose shapes alone matter.
    schedule
        Of the warmup to come.
    """
    estimator = _choose_estimator(preconditioner, position, schedule, dense_limit, spectrum_limit)
    num_parts = _num_parts(estimator, minibatch)
    kernel = algorithm.build_kernel(num_parts=num_parts)
    return WindowedAdaptation(
        kernel, logdensity_fn, estimator, target_deflection, num_parts, TUNERS[tuner], pool
    )


def _choose_estimator(
    preconditioner: str | PreconditionerEstimator,
    position: ArrayTree,
    schedule: Schedule,
    dense_limit: int,
    spectrum_limit: int,
) -> PreconditionerEstimator:
    """Return the estimator that a name stands for."""
    if isinstance(preconditioner, PreconditionerEstimator):
        return preconditioner
    d = pytree_size(position)
    if preconditioner == "auto":
        enough = schedule.slow_windows[-1] >= DRAWS_PER_PARAMETER * d
        has_matrix = any(jnp.ndim(leaf) > 1 for leaf in jax.tree.leaves(position))
        structured = "kronecker" if has_matrix else "diagonal"
        preconditioner = "dense" if d <= dense_limit and enough else structured
    if preconditioner == "dense":
        return dense_estimator()
    if preconditioner == "kronecker":
        return kronecker_estimator()
    if preconditioner == "low_rank":
        return low_rank_estimator()
    if preconditioner == "diagonal":
        return diagonal_estimator(spectrum_limit)
    return identity_estimator(position, spectrum_limit)


def _num_parts(estimator: PreconditionerEstimator, minibatch: ArrayTree) -> int:
    """Return into how many parts to split a minibatch: four if that is of use."""
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(minibatch) if jnp.shape(leaf)}
    quarters = estimator.many_draws and all(size % 4 == 0 for size in sizes)
    return 4 if quarters else 2
