"""Setting up an adaptation: which preconditioner, how minibatches are split, checks."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.types import ArrayTree
from blackjax.util import pytree_size

from blackjax_smile._checks import is_number
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

__all__ = ["PRECONDITIONERS", "AdaptationOptions", "build_adaptation", "check_algorithm"]

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


@dataclasses.dataclass(frozen=True)
class AdaptationOptions:
    """How to adapt; see `blackjax_smile.smile_adaptation`.

    pool
        What the chains share.

    Raises
    ------
    ValueError
        For an unknown preconditioner or tuner, or a target outside (0, 1].
    """

    preconditioner: str | PreconditionerEstimator = "auto"
    target_deflection: float = 0.25
    tuner: str = "deflection"
    pool: Pool = SEPARATE
    dense_limit: int = 1000
    spectrum_limit: int = 200

    def __post_init__(self) -> None:
        if self.tuner not in TUNERS:
            raise ValueError(f"tuner must be one of {tuple(TUNERS)}, got {self.tuner!r}.")
        is_known = isinstance(self.preconditioner, PreconditionerEstimator) or (
            self.preconditioner in PRECONDITIONERS
        )
        if not is_known:
            raise ValueError(
                f"preconditioner must be one of {PRECONDITIONERS}, got {self.preconditioner!r}."
            )
        if not is_number(self.target_deflection) or not 0 < self.target_deflection <= 1:
            raise ValueError(
                "target_deflection must be a number in (0, 1] radians, got "
                f"{self.target_deflection!r}."
            )
        # NumPy's float would not be the same run on resuming.
        object.__setattr__(self, "target_deflection", float(self.target_deflection))


def build_adaptation(
    build_kernel: Callable,
    logdensity_fn: Callable,
    options: AdaptationOptions,
    position: ArrayTree,
    schedule: Schedule,
    minibatch: ArrayTree,
) -> WindowedAdaptation:
    """Return the adaptation of an algorithm to a model, as pure functions.

    Parameters
    ----------
    build_kernel
        Of the algorithm.
    logdensity_fn
        ``(position, minibatch) -> logdensity``.
    options
        How to adapt.
    position, minibatch
        Examples, whose shapes alone matter.
    schedule
        Of the warmup to come.
    """
    estimator = _choose_estimator(options, position, schedule)
    num_parts = _num_parts(estimator, minibatch)
    return WindowedAdaptation(
        build_kernel(num_parts=num_parts),
        logdensity_fn,
        estimator,
        options.target_deflection,
        num_parts,
        TUNERS[options.tuner],
        options.pool,
    )


def _choose_estimator(
    options: AdaptationOptions, position: ArrayTree, schedule: Schedule
) -> PreconditionerEstimator:
    """Return the estimator that a name stands for."""
    preconditioner = options.preconditioner
    if isinstance(preconditioner, PreconditionerEstimator):
        return preconditioner
    d = pytree_size(position)
    if preconditioner == "auto":
        enough = schedule.slow_windows[-1] >= DRAWS_PER_PARAMETER * d
        has_matrix = any(jnp.ndim(leaf) > 1 for leaf in jax.tree.leaves(position))
        structured = "kronecker" if has_matrix else "diagonal"
        preconditioner = "dense" if d <= options.dense_limit and enough else structured
    if preconditioner == "dense":
        return dense_estimator()
    if preconditioner == "kronecker":
        return kronecker_estimator()
    if preconditioner == "low_rank":
        return low_rank_estimator()
    if preconditioner == "diagonal":
        return diagonal_estimator(options.spectrum_limit)
    return identity_estimator(position, options.spectrum_limit)


def _num_parts(estimator: PreconditionerEstimator, minibatch: ArrayTree) -> int:
    """Return into how many parts to split a minibatch: four if that is of use."""
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(minibatch) if jnp.shape(leaf)}
    quarters = estimator.many_draws and all(size % 4 == 0 for size in sizes)
    return 4 if quarters else 2
