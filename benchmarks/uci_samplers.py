"""The samplers of the UCI network benchmark, all from the same trained networks.

Each function takes a `Problem` and returns `Draws`: what thinned draws of every
chain say about the validation and the test rows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import uci_model
from full_batch_nuts import nuts_chain
from jax import Array
from uci_data import Table

import blackjax_smile

BATCH_SIZE = 256
NUM_DRAWS = 250
SGHMC_STEPS = 10


class Draws(NamedTuple):
    """Leading axes: chains, draws, rows. ``accepted`` is the share of steps kept, by chain."""

    validation_logs: Array
    test_logs: Array
    predictions: Array
    log_scale: Array
    accepted: Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """A table, the starts of the chains and the number of gradients that each may take."""

    table: Table
    starts: dict
    num_gradients: int
    rng_key: Array

    @property
    def num_chains(self) -> int:
        return len(jax.tree.leaves(self.starts)[0])

    @functools.cached_property
    def logdensity_fn(self) -> Callable:
        return uci_model.build_logdensity(len(self.table.train[0]))

    @functools.cached_property
    def minibatch_fn(self) -> Callable:
        return blackjax_smile.minibatch_sampler(self.table.train, BATCH_SIZE)

    def look_at(self, position, accepted) -> Draws:
        return Draws(
            uci_model.row_logdensities(position, self.table.validation),
            uci_model.row_logdensities(position, self.table.test),
            uci_model.predict(position, self.table.test[0]),
            position["log_scale"],
            accepted,
        )

    def run(self, rng_key, step, state, num_steps: int, position_of=lambda state: state) -> Draws:
        """Run one chain of ``step(rng_key, state) -> (state, is_divergent)`` and look at draws."""
        thinning = num_steps // NUM_DRAWS

        def draw(state, key):
            state, rejected = jax.lax.scan(
                lambda state, key: step(key, state), state, jax.random.split(key, thinning)
            )
            return state, self.look_at(position_of(state), 1 - jnp.mean(rejected))

        return jax.lax.scan(draw, state, jax.random.split(rng_key, NUM_DRAWS))[1]

    def chains(self, chain: Callable, *args) -> Draws:
        """Run ``chain(rng_key, start, *args)`` for every start side by side."""
        keys = jax.random.split(self.rng_key, self.num_chains)
        draws, extra = jax.jit(jax.vmap(chain, in_axes=(0, 0, *(None for _ in args))))(
            keys, self.starts, *args
        )
        return draws._replace(accepted=jnp.mean(draws.accepted, axis=1)), extra


def ensemble(problem: Problem):
    """The trained networks themselves, one draw each."""

    def chain(key, start):
        return jax.tree.map(lambda x: x[None], problem.look_at(start, jnp.ones(()))), {}

    return problem.chains(chain)


def smile(problem: Problem, preconditioner: str, num_warmup: int, **options):
    """`blackjax_smile` with nothing set by hand; each chain has a warmup of its own."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        problem.logdensity_fn,
        problem.minibatch_fn,
        preconditioner=preconditioner,
        **options,
    )

    def chain(key, start):
        warmup_key, key = jax.random.split(key)
        (state, parameters), info = warmup.run(warmup_key, start, num_steps=num_warmup)
        draws = _smile_chain(problem, key, state, parameters, num_warmup)
        return draws, {
            "anisotropy": info.windows.anisotropy[-1],
            "L / step_size": parameters["L"] / parameters["step_size"],
        }

    return problem.chains(chain)


def naive_smile(problem: Problem, factor: float, num_warmup: int):
    """A diagonal map, no refresh, no threshold; ``factor`` times the adapted step size."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, problem.logdensity_fn, problem.minibatch_fn, preconditioner="diagonal"
    )

    def chain(key, start, factor):
        warmup_key, key = jax.random.split(key)
        (state, parameters), _ = warmup.run(warmup_key, start, num_steps=num_warmup)
        parameters = {
            "inverse_mass_matrix": parameters["inverse_mass_matrix"],
            "step_size": factor * parameters["step_size"],
        }
        return _smile_chain(problem, key, state, parameters, num_warmup), {}

    return problem.chains(chain, factor)


def _smile_chain(problem: Problem, key, state, parameters, num_warmup: int) -> Draws:
    algorithm = blackjax_smile.with_minibatches(
        blackjax_smile.smile(problem.logdensity_fn, **parameters), problem.minibatch_fn
    )

    def step(key, state):
        state, info = algorithm.step(key, state)
        return state, info.is_divergent

    num_steps = problem.num_gradients - num_warmup
    return problem.run(key, step, state, num_steps, lambda state: state.position)


def stochastic_gradient(problem: Problem, name: str, step_size: float, num_warmup: int):
    """BlackJAX's SGLD or SGHMC with a constant step size."""
    grad_fn = jax.grad(problem.logdensity_fn)
    if name == "sgld":
        algorithm, cost = blackjax.sgld(grad_fn), 1
    else:
        algorithm, cost = blackjax.sghmc(grad_fn, SGHMC_STEPS), SGHMC_STEPS

    def chain(key, start, step_size):
        def step(key, position):
            batch_key, key = jax.random.split(key)
            minibatch = problem.minibatch_fn(batch_key)
            return algorithm.step(key, position, minibatch, step_size), jnp.zeros(())

        warmup_key, key = jax.random.split(key)
        position, _ = jax.lax.scan(
            lambda position, key: step(key, position),
            start,
            jax.random.split(warmup_key, num_warmup // cost),
        )
        num_steps = (problem.num_gradients - num_warmup) // cost
        return problem.run(key, step, position, num_steps), {}

    return problem.chains(chain, step_size)


def nuts(problem: Problem, num_warmup: int, num_samples: int):
    """BlackJAX's NUTS on the full data set: the ceiling."""

    def logdensity_fn(position):
        return problem.logdensity_fn(position, problem.table.train)

    def look_at(state, info):
        draws = problem.look_at(state.position, 1.0 - info.is_divergent)
        return draws, info.num_integration_steps

    def chain(key, start):
        draws, num_steps = nuts_chain(key, start, logdensity_fn, num_warmup, num_samples, look_at)
        return draws, {"gradients a draw": jnp.mean(num_steps)}

    return problem.chains(chain)
