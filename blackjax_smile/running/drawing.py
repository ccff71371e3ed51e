"""The compiled part of sampling: a few steps of all chains, the draws into buffers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile import _tree
from blackjax_smile.running.programs import Keys, MinibatchGetter, keys_at
from blackjax_smile.sgmcmc import smile
from blackjax_smile.sgmcmc.smile import SmileInfo, SmileState

__all__ = ["STATISTICS", "Chains", "Tally", "build_sampling", "init_chains", "row_of"]

#: Memory of the running mean of the deflection that the progress bar shows.
DECAY = 0.999


#: What is kept of each draw besides the position.
STATISTICS = (
    "lp",
    "diverging",
    "num_rejected",
    "energy_error",
    "kinetic_change",
    "deflection",
    "alignment",
)


class Tally(NamedTuple):
    """Sums over the steps since the last draw; rejected ones count in ``num_rejected`` alone."""

    num_steps: Array
    num_rejected: Array
    energy_change: Array
    kinetic_change: Array
    deflection: Array
    alignment: Array


class Chains(NamedTuple):
    """State of sampling; every leaf leads with the chain.

    states
        `SmileState` of each chain.
    tally
        Sums for the draw under way.
    num_rejected, deflection
        For the progress bar: rejections so far, running mean of the deflection.
    """

    states: SmileState
    tally: Tally
    num_rejected: Array
    deflection: Array


def init_chains(states: SmileState) -> Chains:
    """Return the state at the start of sampling."""
    scalar = jnp.zeros_like(states.logdensity)
    count = jnp.zeros(scalar.shape, jnp.int32)
    return Chains(states, Tally(count, count, scalar, scalar, scalar, scalar), count, scalar)


def add_to_tally(tally: Tally, info: SmileInfo) -> Tally:
    accepted = ~info.is_divergent

    def add(total, value):
        return total + jnp.where(accepted, value, 0)

    return Tally(
        tally.num_steps + 1,
        tally.num_rejected + info.is_divergent.astype(tally.num_rejected.dtype),
        add(tally.energy_change, info.energy_change),
        add(tally.kinetic_change, info.kinetic_change),
        add(tally.deflection, info.deflection),
        add(tally.alignment, info.alignment),
    )


def row_of(chains: Chains, collect: Callable) -> dict[str, dict[str, Array]]:
    """Return what is stored of a draw: the collected tree and the statistics."""
    tally = chains.tally
    accepted = jnp.maximum(tally.num_steps - tally.num_rejected, 1)
    accepted = accepted.astype(tally.energy_change.dtype)
    return {
        "posterior": jax.vmap(collect)(chains.states.position),
        "sample_stats": {
            "lp": chains.states.logdensity,
            "diverging": tally.num_rejected > 0,
            "num_rejected": tally.num_rejected,
            "energy_error": tally.energy_change / accepted,
            "kinetic_change": tally.kinetic_change / accepted,
            "deflection": tally.deflection / accepted,
            "alignment": tally.alignment / accepted,
        },
    }


def build_sampling(
    logdensity_fn: Callable,
    minibatches: MinibatchGetter,
    collect: Callable,
    impl: str,
) -> Callable:
    """Return the program of sampling.

    ``(keys, parameters, chains, buffers, plan, start, stop, block) -> (chains,
    buffers)`` takes the gradients from ``start`` to ``stop`` and writes each draw to
    ``buffers[:, draw - first_draw]``; ``plan`` is ``[first_draw, num_warmup,
    thinning]``. A draw that is not complete
    yet is written too, and again once it is.
    """
    kernel = smile.build_kernel()

    def step(keys, state, parameters, minibatch):
        return kernel(keys, state, logdensity_fn, minibatch=minibatch, **parameters)

    def sample(keys: Keys, parameters, chains: Chains, buffers, plan, start, stop, block):
        first_draw, num_warmup, thinning = plan[0], plan[1], plan[2]

        def body(gradient, chains):
            both = jax.vmap(jax.random.split)(keys_at(keys.sample, gradient, impl))
            batches = minibatches(both[:, 1], gradient, block)
            states, info = jax.vmap(step, (0, 0, 0, minibatches.axis))(
                both[:, 0], chains.states, parameters, batches
            )
            mean = DECAY * chains.deflection + (1 - DECAY) * info.deflection
            mean = jnp.where(chains.deflection == 0, info.deflection, mean)
            return Chains(
                states,
                add_to_tally(chains.tally, info),
                chains.num_rejected + info.is_divergent.astype(chains.num_rejected.dtype),
                jnp.where(info.is_divergent, chains.deflection, mean),
            )

        def one_draw(carry):
            gradient, chains, buffers = carry
            draw = (gradient - num_warmup) // thinning
            complete = num_warmup + (draw + 1) * thinning
            end = jnp.minimum(complete, stop)
            chains = jax.lax.fori_loop(gradient, end, body, chains)
            buffers = jax.tree.map(
                lambda xs, x: xs.at[:, draw - first_draw].set(x.astype(xs.dtype)),
                buffers,
                row_of(chains, collect),
            )
            empty = jax.tree.map(jnp.zeros_like, chains.tally)
            tally = _tree.select(end == complete, empty, chains.tally)
            return end, chains._replace(tally=tally), buffers

        start = jnp.asarray(start, jnp.int32)
        carry = (start, chains, buffers)
        return jax.lax.while_loop(lambda carry: carry[0] < stop, one_draw, carry)[1:]

    return sample
