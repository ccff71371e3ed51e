"""The warmup where there is no gradient noise to whiten: BlackJAX's tuner of MCLMC."""

from collections.abc import Callable
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.adaptation.base import AdaptationResults
from blackjax.mcmc.integrators import isokinetic_mclachlan
from blackjax.types import Array, ArrayTree, PRNGKey

from blackjax_smile.sgmcmc import smile

__all__ = ["FullBatchAdaptationInfo", "adapt_full_batch"]


class FullBatchAdaptationInfo(NamedTuple):
    """What the warmup did on a full-batch log-density.

    num_integration_steps
        Number of steps that BlackJAX's tuner took, of two gradients each.
    """

    num_integration_steps: Array


def adapt_full_batch(
    rng_key: PRNGKey, position: ArrayTree, logdensity_fn: Callable, num_steps: int
) -> tuple[AdaptationResults, FullBatchAdaptationInfo]:
    """Tune `smile` on a full-batch log-density by BlackJAX's tuner of MCLMC.

    Raises
    ------
    ValueError
        If the position has leaves of another dtype than JAX's default.
    """
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(position)}
    if dtypes - {jnp.zeros(()).dtype}:
        raise ValueError(
            "BlackJAX's tuner of MCLMC, which adapts a full-batch log-density, takes positions of "
            f"{jnp.zeros(()).dtype} alone (as jax_enable_x64 says); got "
            f"{sorted(map(str, dtypes))}. Cast the position."
        )
    init_key, tune_key = jax.random.split(rng_key)
    # Three phases of 0.3, the second of which the tuner lengthens by a third.
    state, tuned, taken = blackjax.mclmc_find_L_and_step_size(
        blackjax.mclmc.build_kernel(integrator=isokinetic_mclachlan),
        num_steps,
        blackjax.mclmc.init(position, logdensity_fn, init_key),
        tune_key,
        logdensity_fn=logdensity_fn,
        frac_tune1=0.3,
        frac_tune2=0.3,
        frac_tune3=0.3,
    )
    # Any key will do, and the caller's are used up: the momentum is replaced by the tuner's.
    sampler = smile.init(position, logdensity_fn, jax.random.key(0), isokinetic_mclachlan)
    sampler = sampler._replace(**state._asdict())
    parameters = {**tuned._asdict(), "integrator": isokinetic_mclachlan}
    return AdaptationResults(sampler, parameters), FullBatchAdaptationInfo(taken)
