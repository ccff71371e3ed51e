"""The samplers of the analytic benchmark, run on a grid of seeds and step sizes at once.

No draw is stored: second moments are summed in chunks on the device, in float32, and over
chunks on the host, in float64.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from analytic_targets import D, Target, noise_model

import blackjax_smile

#: Refresh length of the paper's variants on these targets: next to none.
L_PAPER = 1000.0
#: Steps per call of a compiled loop.
CHUNK = 1000
#: Equal parts of a run, whose moments are kept apart; the first is its burn-in.
BLOCKS = 10
SGHMC_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler: gradients per step, its grid of step sizes, and how a chain is made.

    ``chain(target, logdensity_fn, minibatch_fn, step_size)`` returns ``init(key, position)`` and
    ``step(key, state)`` -> ``(state, rejected)``.
    """

    gradients: int
    step_sizes: tuple[float, float]
    chain: Callable


def online(**options) -> Method:
    def chain(logdensity_fn, minibatch_fn, step_size):
        algorithm = blackjax_smile.online_smile(logdensity_fn, step_size, L=L_PAPER, **options)

        def step(key, state):
            batch_key, step_key = jax.random.split(key)
            state, info = algorithm.step(step_key, state, minibatch_fn(batch_key))
            return state, info.is_divergent

        return lambda key, position: algorithm.init(position, key), step

    return Method(2, (2e-3, 0.5), chain)


def peer(name: str, gradients: int, step_sizes: tuple[float, float], **options) -> Method:
    def chain(logdensity_fn, minibatch_fn, step_size):
        algorithm = getattr(blackjax, name)(jax.grad(logdensity_fn), **options)
        bound = blackjax_smile.with_minibatches(algorithm, minibatch_fn, step_size)

        def step(key, position):
            position, _ = bound.step(key, position)
            return position, jnp.zeros((), bool)

        return lambda key, position: position, step

    return Method(gradients, step_sizes, chain)


NAIVE = {"adaption_prob": 0.0, "reset_prob": 1.0}
METHODS = {
    "smile-naive": online(preconditioning=False, **NAIVE),
    "smile-paper": online(preconditioning=False),
    "psmile-naive": online(**NAIVE),
    "psmile": online(),
    "sgld": peer("sgld", 1, (1e-6, 1e-2)),
    "sghmc": peer("sghmc", SGHMC_STEPS, (1e-5, 2e-2), num_integration_steps=SGHMC_STEPS),
}
#: Adapted by `smile_adaptation`, nothing set.
ADAPTED = ("smile",)


def step_size_grid(name: str, size: int) -> np.ndarray:
    return np.geomspace(*METHODS[name].step_sizes, size)


def run_grid(name, target: Target, structure, law, num_gradients, seeds, step_sizes, start="draw"):
    """Return E[x^2] of shape (blocks, seeds, step sizes, d), rejections, and seconds."""
    method = METHODS[name]
    logdensity_fn, minibatch_fn = noise_model(target, structure, law)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))

    def chain(key, step_size):
        init, step = method.chain(logdensity_fn, minibatch_fn, step_size)
        start_key, init_key, key = jax.random.split(key, 3)
        position = target.draw(start_key) if start == "draw" else jnp.zeros(D)
        return (init(init_key, position), key), step

    def grid(function):
        return jax.vmap(jax.vmap(function, (None, 0, 0)), (0, None, 0))

    init = jax.vmap(jax.vmap(lambda key, e: chain(key, e)[0], (None, 0)), (0, None))

    def advance(key, step_size, carry):
        _, step = chain(key, step_size)
        return _chunk(step, carry)

    # Key and step size are the closure's constants; the chain's own key is in the carry.
    run = jax.jit(grid(advance))
    grid_steps = jnp.asarray(step_sizes, jnp.float32)
    carry = jax.jit(init)(keys, grid_steps)
    return _accumulate(
        lambda carry: run(keys, grid_steps, carry), carry, num_gradients // method.gradients
    )


def run_adapted(target: Target, structure, law, num_gradients, seeds, start="draw", **options):
    """As `run_grid`, with one step size, the adapted one; and what the warmup found."""
    logdensity_fn, minibatch_fn = noise_model(target, structure, law)
    minibatch_fn = functools.partial(minibatch_fn, num_rows=2)
    num_warmup = options.pop("num_warmup", 2000)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, **options
    )
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))

    @jax.jit
    @jax.vmap
    def init(key):
        start_key, init_key, key = jax.random.split(key, 3)
        position = target.draw(start_key) if start == "draw" else jnp.zeros(D)
        (state, parameters), info = warmup.run(init_key, position, num_steps=num_warmup)
        return (state, key), parameters, info.windows

    @jax.jit
    @jax.vmap
    def run(parameters, carry):
        algorithm = blackjax_smile.smile(logdensity_fn, **parameters)

        def step(key, state):
            batch_key, step_key = jax.random.split(key)
            state, info = algorithm.step(step_key, state, minibatch_fn(batch_key))
            return state, info.is_divergent

        return _chunk(step, carry)

    started = time.perf_counter()
    carry, parameters, windows = jax.block_until_ready(init(keys))
    moments, rejected, seconds = _accumulate(
        lambda carry: run(parameters, carry), carry, num_gradients - num_warmup
    )
    seconds = time.perf_counter() - started
    return moments[:, :, None], rejected[:, :, None], seconds, parameters, windows


def _chunk(step, carry):
    """Take `CHUNK` steps; return the summed squares and the number of rejections."""

    def body(carry, _):
        (state, key), square, rejected = carry
        key, step_key = jax.random.split(key)
        state, is_divergent = step(step_key, state)
        position = state if isinstance(state, jax.Array) else state.position
        return ((state, key), square + position**2, rejected + is_divergent), None

    zero = (carry, jnp.zeros(D), jnp.zeros((), jnp.int32))
    (carry, square, rejected), _ = jax.lax.scan(body, zero, None, CHUNK)
    return carry, square, rejected


def _accumulate(run, carry, num_steps):
    """Return the means of x^2 and of rejections over `BLOCKS` equal parts, and seconds."""
    num_chunks = max(num_steps // (CHUNK * BLOCKS), 1)
    started = time.perf_counter()
    squares, rejections = [], []
    for _ in range(BLOCKS):
        square, rejected = 0.0, 0.0
        for _ in range(num_chunks):
            carry, chunk_square, chunk_rejected = run(carry)
            square = square + np.asarray(chunk_square, np.float64)
            rejected = rejected + np.asarray(chunk_rejected, np.float64)
        squares.append(square / (num_chunks * CHUNK))
        rejections.append(rejected / (num_chunks * CHUNK))
    return np.stack(squares), np.stack(rejections), time.perf_counter() - started
