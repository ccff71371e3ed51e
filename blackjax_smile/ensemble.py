"""Ensembles: several chains adapted and sampled side by side, and what failed among them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import AdaptationAlgorithm
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey
from blackjax.util import run_inference_algorithm, thin_algorithm

from blackjax_smile import _tree
from blackjax_smile._averaging import NOT_AVERAGING
from blackjax_smile._chains import check_positions
from blackjax_smile._checks import check_key, positive_integer
from blackjax_smile._jitted import jitted
from blackjax_smile.adaptation.pooling import CHAIN_AXIS
from blackjax_smile.adaptation.setup import check_algorithm
from blackjax_smile.adaptation.smile_adaptation import SmileAdaptationInfo
from blackjax_smile.minibatch import with_minibatches

__all__ = ["REASONS", "EnsembleAdaptation", "adapt_ensemble", "drop_failed", "sample_ensemble"]

#: What the numbers in `EnsembleAdaptation.reason` mean.
REASONS = (
    "sound",
    "the log-density or its gradient was not finite at the initial position",
    "the position or an adapted parameter is not finite",
    "nearly all steps of the last window were rejected",
    "the position did not change",
    "the step size collapsed, compared with the other members",
    "the log-density sums over its minibatch instead of averaging",
)

#: A step size below this share of the members' median has collapsed: one that
#: follows its target differs between modes by a small factor.
COLLAPSED = 1e-3


class EnsembleAdaptation(NamedTuple):
    """Adapted chains; every leaf leads with the axis of the chains.

    state, parameters
        States of the chains, and arguments of `blackjax_smile.smile`: one set per
        chain, equal ones if pooled.
    info
        `SmileAdaptationInfo` of each chain.
    failed
        Whether the adaptation of a chain failed, shape ``(chains,)``.
    reason
        Why, an index into `blackjax_smile.ensemble.REASONS`; 0 is sound.
    """

    state: Any
    parameters: dict[str, Any]
    info: Any
    failed: Array
    reason: Array

    def describe_failures(self) -> list[str]:
        """Return a line for each chain that failed."""
        return [f"chain {i}: {REASONS[code]}" for i, code in enumerate(self.reason) if code]


def adapt_ensemble(
    rng_key: PRNGKey,
    warmup: AdaptationAlgorithm,
    positions: ArrayLikeTree,
    num_steps: int = 2000,
) -> EnsembleAdaptation:
    """Adapt several chains side by side, and find out which of them failed.

    Each chain gets a preconditioner, a step size, L and threshold of its own, or
    shares them with ``smile_adaptation(..., pooled=True)``. A chain that fails
    changes nothing for the others, pooled or not: it adds no draws to the pooled
    moments, and the pooled scalars are medians.

    Parameters
    ----------
    rng_key
        Split between the chains.
    warmup
        Made by `blackjax_smile.smile_adaptation`.
    positions
        Starts, leaves of leading axis ``(chain,)``: what
        `blackjax_smile.train_ensemble` returns, for one.
    num_steps
        Number of minibatch gradients per chain.

    Returns
    -------
    An `EnsembleAdaptation`. Look at ``failed``, and go on with `drop_failed`.

    Raises
    ------
    ValueError
        As ``warmup.run``; if the starts have no common leading axis; for a warmup of a
        full-batch log-density.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> minibatch_fn = blackjax_smile.minibatch_sampler(data, batch_size=50)
    >>> warmup = blackjax_smile.smile_adaptation(
    ...     blackjax_smile.smile, logdensity_fn, minibatch_fn)
    >>> starts = jnp.array([[0.0, 0.0], [jnp.nan, 0.0], [1.0, 2.0]])
    >>> adapted = blackjax_smile.adapt_ensemble(jax.random.key(1), warmup, starts, num_steps=300)
    >>> adapted.failed.tolist()
    [False, True, False]
    >>> adapted.describe_failures()
    ['chain 1: the log-density or its gradient was not finite at the initial position']
    """
    if not hasattr(warmup, "run"):
        raise ValueError(
            f"warmup must be what smile_adaptation(...) returns, got {type(warmup).__name__}."
        )
    check_key(rng_key)
    positions, num_chains = check_positions(positions)
    keys = jax.random.split(rng_key, num_chains)

    def run(key, position):
        results, info = warmup.run(key, position, num_steps=num_steps)
        if not isinstance(info, SmileAdaptationInfo):
            raise ValueError(
                "adapt_ensemble needs a warmup on minibatches: smile_adaptation(smile, "
                "logdensity_fn, minibatch_fn). Run one of a full-batch log-density chain by chain."
            )
        return results, info

    (state, parameters), info = jax.vmap(run, axis_name=CHAIN_AXIS)(keys, positions)
    if not _tree.is_traced(info.averages) and not info.averages.any():
        raise ValueError(NOT_AVERAGING.format("on half a minibatch it has half of its value"))
    reason = _reasons(positions, state, parameters, info)
    return EnsembleAdaptation(state, parameters, info, reason > 0, reason)


def _check_adaptation(adaptation: Any) -> None:
    if not isinstance(adaptation, EnsembleAdaptation):
        raise ValueError(
            "adaptation must be the whole of what adapt_ensemble(...) or drop_failed(...) returns, "
            f"got a {type(adaptation).__name__}."
        )


@jax.jit
def _reasons(positions: ArrayTree, state: Any, parameters: Any, info: Any) -> Array:
    """Return the index of the first of the `REASONS` that holds of each chain."""
    step_size = parameters["step_size"]
    numbers = (state.position, parameters["inverse_mass_matrix"], step_size)
    # L = inf is sound: white, strong noise needs no refresh.
    finite = jax.vmap(_tree.all_finite)(numbers) & ~jnp.isnan(parameters["L"])
    changed = jax.vmap(
        lambda a, b: _tree.reduce_scalars(
            jnp.any, [jnp.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
        )
    )(positions, state.position)
    checks = [
        info.num_finite_probes == 0,
        ~finite,
        info.schedule.is_stuck(info.windows.num_rejected[:, -1]),
        ~changed,
    ]
    sound = ~jnp.any(jnp.stack(checks), axis=0)
    median = jnp.nanmedian(jnp.where(sound, step_size, jnp.nan))
    checks += [step_size < COLLAPSED * median, ~info.averages]
    failed = jnp.stack(checks)
    return jnp.where(jnp.any(failed, axis=0), 1 + jnp.argmax(failed, axis=0), 0)


def drop_failed(adaptation: EnsembleAdaptation) -> EnsembleAdaptation:
    """Return the sound chains of an ensemble.

    Parameters
    ----------
    adaptation
        Returned by `adapt_ensemble`.

    Returns
    -------
    An `EnsembleAdaptation` of the chains that did not fail.

    Raises
    ------
    ValueError
        If all have failed, or for what is no `EnsembleAdaptation`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from blackjax_smile.ensemble import EnsembleAdaptation, drop_failed
    >>> adaptation = EnsembleAdaptation(
    ...     jnp.arange(3.0), {}, None, jnp.array([False, True, False]), jnp.array([0, 2, 0]))
    >>> drop_failed(adaptation).state.tolist()
    [0.0, 2.0]
    """
    _check_adaptation(adaptation)
    keep = ~np.asarray(adaptation.failed)
    if not keep.any():
        raise ValueError(
            "The adaptation of all chains failed: " + "; ".join(adaptation.describe_failures())
        )
    return jax.tree.map(lambda x: x[keep], adaptation) if not keep.all() else adaptation


def sample_ensemble(
    rng_key: PRNGKey,
    algorithm: Any,
    logdensity_fn: Callable,
    minibatch_fn: Callable[[PRNGKey], ArrayTree],
    adaptation: EnsembleAdaptation,
    num_samples: int,
    thinning: int = 1,
) -> tuple[Any, tuple[ArrayTree, Any]]:
    """Sample the adapted chains side by side, draws in memory.

    Parameters
    ----------
    rng_key
        Split between the chains.
    algorithm
        `blackjax_smile.smile`.
    logdensity_fn, minibatch_fn
        As in the warmup.
    adaptation
        Returned by `adapt_ensemble` or `drop_failed`.
    num_samples
        Number of draws kept, per chain.
    thinning
        Number of steps from one draw kept to the next.

    Returns
    -------
    ``(states, (positions, infos))``: the final states, and draws and infos with
    leading axes ``(chain, draw)``. A draw's info holds means over its accepted steps (0
    without any), of ``is_divergent`` the number of rejected ones, of ``logdensity`` the last.

    Raises
    ------
    ValueError
        For numbers that are no integers of at least 1, and for what is no `EnsembleAdaptation`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> minibatch_fn = blackjax_smile.minibatch_sampler(data, batch_size=50)
    >>> warmup = blackjax_smile.smile_adaptation(
    ...     blackjax_smile.smile, logdensity_fn, minibatch_fn)
    >>> adapted = blackjax_smile.adapt_ensemble(
    ...     jax.random.key(1), warmup, jnp.zeros((3, 2)), num_steps=300)
    >>> states, (positions, infos) = blackjax_smile.sample_ensemble(
    ...     jax.random.key(2), blackjax_smile.smile, logdensity_fn, minibatch_fn, adapted,
    ...     num_samples=50, thinning=10)
    >>> positions.shape, infos.deflection.shape
    ((3, 50, 2), (3, 50))
    """
    check_key(rng_key)
    check_algorithm(algorithm)
    _check_adaptation(adaptation)
    num_samples = positive_integer("num_samples", num_samples)
    thinning = positive_integer("thinning", thinning)
    keys = jax.random.split(rng_key, len(adaptation.failed))
    # BlackJAX's wrapper of it has no hash, by which a program would be found again.
    build = getattr(algorithm, "differentiable", algorithm)
    sample = jitted(_sample_chains, build, logdensity_fn, minibatch_fn, num_samples, thinning)
    return sample(keys, adaptation.state, adaptation.parameters)


def _sample_chains(
    build, logdensity_fn, minibatch_fn, num_samples, thinning, keys, states, parameters
):
    def chain(key, state, parameters):
        bound = with_minibatches(build(logdensity_fn, **parameters), minibatch_fn)
        return run_inference_algorithm(
            key,
            thin_algorithm(bound, thinning, _summarise),
            num_samples,
            initial_state=state,
            transform=lambda state, info: (state.position, info),
        )

    return jax.vmap(chain)(keys, states, parameters)


def _summarise(info: Any) -> Any:
    """Return the info of a draw from those of its steps, as `blackjax_smile.sample` does."""
    # A rejected step's numbers may be infinite or NaN, and would be the draw's.
    accepted = ~info.is_divergent
    count = jnp.maximum(jnp.sum(accepted), 1)

    def mean(values: Array) -> Array:
        return jnp.sum(values, where=accepted) / count.astype(values.dtype)

    return info._replace(
        logdensity=info.logdensity[-1],
        kinetic_change=mean(info.kinetic_change),
        energy_change=mean(info.energy_change),
        deflection=mean(info.deflection),
        alignment=mean(info.alignment),
        is_divergent=jnp.sum(info.is_divergent),
    )
