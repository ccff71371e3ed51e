"""Running the windows of an adaptation: in one compiled loop, or from a host iterable."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey

from blackjax_smile._batching import unwrap_keys
from blackjax_smile._epochs import IN_EPOCHS, EpochDetector
from blackjax_smile.adaptation.schedule import Schedule
from blackjax_smile.adaptation.state import AdaptationState, WindowInfo
from blackjax_smile.adaptation.windows import WindowedAdaptation
from blackjax_smile.sgmcmc.smile import SmileInfo, SmileState

__all__ = ["Record", "StepHistory", "history_row", "run_on_device", "run_on_host"]


class StepHistory(NamedTuple):
    """Scalars of every step of the windows, in order; probes are not steps."""

    step_size: Array
    deflection: Array
    energy_change: Array
    is_divergent: Array


class Record(NamedTuple):
    """What a run leaves besides the final state.

    num_finite_probes
        Number of finite gradients at the initial position.
    windows
        `WindowInfo` with a leading axis.
    steps
        `StepHistory`.
    """

    num_finite_probes: Array
    windows: WindowInfo
    steps: StepHistory


def run_on_device(
    adaptation: WindowedAdaptation,
    schedule: Schedule,
    rng_key: PRNGKey,
    sampler: SmileState,
    minibatch_fn: Callable[[PRNGKey], ArrayTree],
) -> tuple[AdaptationState, Record]:
    """Run all windows as one computation, to be traced by `jax.jit`."""
    probe_key, step_key, window_key = jax.random.split(rng_key, 3)

    def probe(i, probed):
        minibatch = minibatch_fn(jax.random.fold_in(probe_key, i))
        return adaptation.probe(sampler, probed, minibatch)

    probed = jax.lax.fori_loop(0, schedule.num_probes, probe, adaptation.init_probe(sampler))
    state = adaptation.init(sampler, probed)

    def step(i, carry):
        state, history = carry
        key, batch_key = jax.random.split(jax.random.fold_in(step_key, i))
        new, info = adaptation.step(key, state, minibatch_fn(batch_key))
        row = history_row(state, info)
        return new, jax.tree.map(lambda xs, x: xs.at[i].set(x), history, row)

    # One loop body for windows of any length: it is compiled once.
    def window(carry, xs):
        start, stop, windows_left, key_data = xs
        state, history = jax.lax.fori_loop(start, stop, step, carry)
        state, info = adaptation.end_window(wrap(key_data), state, windows_left)
        return (state, history), info

    lengths = jnp.asarray(schedule.windows)
    stops = jnp.cumsum(lengths)
    windows_left = jnp.arange(len(lengths))[::-1]
    keys, wrap = unwrap_keys(jax.random.split(window_key, len(lengths)))
    scalars = jnp.zeros(sum(schedule.windows), state.step_size.step_size.dtype)
    history = StepHistory(scalars, scalars, scalars, scalars.astype(bool))
    carry = _as_of_chain((state, history), state.step_size.step_size)
    (state, history), windows = jax.lax.scan(
        window, carry, (stops - lengths, stops, windows_left, keys)
    )
    return state, Record(probed.num_finite, windows, history)


def _as_of_chain(tree: Any, step_size: Array) -> Any:
    """Return the tree, every leaf of it a function of the chain's step size by name.

    Under `jax.vmap` a loop is traced anew until it is known which parts of its carry differ between
    chains; so all of them do from the start, unless the chains are pooled and share their step
    size. The selection is gone when XLA is done.
    """
    either = jnp.isnan(step_size)
    return jax.tree.map(lambda x: jnp.where(either, x, x), tree)


def run_on_host(
    adaptation: WindowedAdaptation,
    schedule: Schedule,
    rng_key: PRNGKey,
    sampler: SmileState,
    minibatches: Iterable[ArrayTree],
) -> tuple[AdaptationState, Record]:
    """Run all windows step by step, one minibatch of an iterable at a time.

    Raises
    ------
    ValueError
        If the iterable ends before the adaptation does.

    Warns
    -----
    UserWarning
        If the minibatches come in epochs.
    """
    _, step_key, window_key = jax.random.split(rng_key, 3)
    batches = _exactly(minibatches, schedule.num_probes + sum(schedule.windows))
    probe, step = jax.jit(adaptation.probe), jax.jit(adaptation.step)
    end_window = jax.jit(adaptation.end_window)

    probed = adaptation.init_probe(sampler)
    for _ in range(schedule.num_probes):
        probed = probe(sampler, probed, next(batches))
    state = jax.jit(adaptation.init)(sampler, probed)
    rows, windows, i = [], [], 0
    keys = jax.random.split(window_key, len(schedule.windows))
    windows_left = reversed(range(len(schedule.windows)))
    for length, key, left in zip(schedule.windows, keys, windows_left, strict=True):
        for _ in range(length):
            step_rng, _ = jax.random.split(jax.random.fold_in(step_key, i))
            new, info = step(step_rng, state, next(batches))
            rows.append(history_row(state, info))
            state, i = new, i + 1
        state, window_info = end_window(key, state, left)
        windows.append(window_info)

    def stack(*xs):
        return jnp.stack(xs)

    return state, Record(
        probed.num_finite, jax.tree.map(stack, *windows), jax.tree.map(stack, *rows)
    )


def history_row(state: AdaptationState, info: SmileInfo) -> StepHistory:
    """Return what is kept of a step; ``state`` is that before it."""
    return StepHistory(
        state.step_size.step_size, info.deflection, info.energy_change, info.is_divergent
    )


def _exactly(minibatches: Iterable[ArrayTree], needed: int) -> Iterator[ArrayTree]:
    """Yield minibatches; raise if there are fewer than needed, warn if they come in epochs."""
    count, detector = 0, EpochDetector()
    for minibatch in minibatches:
        detector.look(minibatch)
        count += 1
        if count == needed and detector.in_epochs:
            warnings.warn(IN_EPOCHS, stacklevel=2)
        yield minibatch
    raise ValueError(
        f"The adaptation needs {needed} minibatches, but the iterable ended after {count}. "
        "Pass one that goes on (itertools.chain.from_iterable(itertools.repeat(loader)) for a data "
        "loader, which should draw its rows with replacement), or lower num_steps."
    )
