"""The two loops of a run: the warmup, and sampling chunk by chunk."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blackjax_smile.running.drawing import Chains
from blackjax_smile.running.engine import Engine
from blackjax_smile.running.journal import Adapted, Journal, Resume
from blackjax_smile.running.progress import Pace, Progress, RunningRhat
from blackjax_smile.running.warming import WarmupState

__all__ = ["run_sampling", "run_warmup"]


def too_few(engine: Engine, gradient: int) -> ValueError:
    """Return the error for minibatches that end too early."""
    settings, feed = engine.settings, engine.feed
    each = getattr(feed.source, "per_gradient", 1) if feed is not None else 1
    return ValueError(
        f"The run needs {settings.num_gradients * each} minibatches ({settings.num_warmup} for the "
        f"warmup and {settings.num_samples} x {settings.thinning} for the draws, for each of "
        f"{each} chains), but the iterable ended after {gradient * each}. With a store, what was "
        "sampled so far is in it and the same call with a longer iterable goes on from there. Pass "
        "one that goes on: a data loader, which should draw its rows with replacement, in "
        "itertools.chain.from_iterable(itertools.repeat(loader))."
    )


def run_warmup(engine: Engine, journal: Journal, resume: Resume, progress: Progress) -> Adapted:
    """Adapt all chains, from the start or from a checkpoint in the middle."""
    schedule, pace = engine.settings.schedule, Pace()
    gradient, carry = resume.gradient, resume.warmup
    if carry is None:
        probe = engine.init_probe()
        while gradient < schedule.num_probes:
            stop, block = engine.available(gradient, schedule.num_probes)
            if stop == gradient:
                raise too_few(engine, gradient)
            probe = engine.probe(probe, gradient, stop, block)
            gradient = stop
        carry = engine.init_warmup(probe)

    ends = schedule.num_probes + np.cumsum(schedule.windows)
    pace.restart()
    while gradient < ends[-1]:
        index = int(np.searchsorted(ends, gradient, side="right"))
        (piece, is_due) = engine.placement.agree(pace.num_gradients, int(journal.is_due))
        if is_due:
            journal.save(gradient, carry, "warmup", 0, engine.loader_position(gradient))
            pace.restart()
        stop, block = engine.available(gradient, int(min(gradient + piece, ends[index])))
        if stop == gradient:
            journal.save(gradient, carry, "warmup", 0, engine.loader_position(gradient))
            raise too_few(engine, gradient)
        carry = engine.warmup_steps(carry, gradient, stop, block)
        if stop == ends[index]:
            carry = engine.end_window(carry, index)
        jax.block_until_ready(carry)
        pace.took(stop - gradient)
        gradient = stop
        if progress.is_shown:
            show_warmup(engine, carry, gradient, progress)
    adapted = Adapted.of(carry)
    journal.save_adapted(gradient, adapted, engine.loader_position(gradient))
    return adapted


def show_warmup(engine: Engine, carry: WarmupState, gradient: int, progress: Progress) -> None:
    last = gradient - engine.settings.schedule.num_probes - 1
    progress.update(
        "warmup",
        gradient,
        step_size=engine.placement.fetch(carry.adaptation.step_size.step_size),
        deflection=engine.placement.fetch(carry.steps.deflection[:, last]),
        rejected=engine.placement.fetch(jnp.sum(carry.steps.is_divergent, axis=1)),
    )


class Chunk:
    """The draws that are being made: buffers from a first draw to a multiple of the chunk size."""

    def __init__(self, engine: Engine, rows: Any, gradient: int, size: int):
        settings = engine.settings
        done = gradient - settings.num_warmup
        self.first_draw = done // settings.thinning
        last = min((self.first_draw // size + 1) * size, settings.num_samples)
        self.end = settings.num_warmup + last * settings.thinning
        self.buffers = empty_buffers(engine.placement, engine.settings.num_chains, size, rows)


def empty_buffers(placement, num_chains: int, size: int, rows: Any) -> Any:
    """Return zeros for a chunk of draws, on the devices."""
    return _zeros_maker(
        num_chains,
        size,
        placement.sharding(),
        jax.tree.structure(rows),
        tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(rows)),
    )()


@functools.lru_cache(maxsize=8)
def _zeros_maker(num_chains, size, sharding, structure, shapes):
    def make():
        leaves = [jnp.zeros((num_chains, size, *shape), dtype) for shape, dtype in shapes]
        return jax.tree.unflatten(structure, leaves)

    return jax.jit(make, out_shardings=sharding)


@dataclasses.dataclass
class Piece:
    """Gradients under way: from ``start`` to ``stop``, in a chunk from ``first_draw`` on."""

    start: int
    stop: int
    first_draw: int
    fills_chunk: bool
    loader: dict | None
    chains: Chains
    buffers: Any


def run_sampling(
    engine: Engine,
    journal: Journal,
    resume: Resume,
    adapted: Adapted,
    rows: Any,
    chunk_size: int,
    progress: Progress,
) -> Chains:
    """Sample to the end; while a piece is computed, the one before it is written."""
    settings, placement, pace = engine.settings, engine.placement, Pace()
    gradient = max(resume.gradient, settings.num_warmup)
    chains = resume.chains
    if chains is None:
        chains = engine.init_chains(adapted.states)
    show = Shown(engine, adapted, progress)
    pending: Piece | None = None
    chunk: Chunk | None = None
    ended = False
    pace.restart()
    while pending is not None or (gradient < settings.num_gradients and not ended):
        last, pending = pending, None
        piece, due = placement.agree(pace.num_gradients, int(journal.is_due))
        flush = last is not None and (bool(due) or last.fills_chunk)
        if flush:
            # The next piece takes over its chunk's memory, so what is to be read leaves it.
            chunk = None
        if gradient < settings.num_gradients and not ended:
            chunk = chunk or Chunk(engine, rows, gradient, chunk_size)
            stop, block = engine.available(gradient, min(gradient + piece, chunk.end))
            ended = stop == gradient
            if not ended:
                chains, chunk.buffers = engine.sample(
                    adapted.parameters,
                    chains,
                    chunk.buffers,
                    gradient,
                    stop,
                    chunk.first_draw,
                    block,
                )
                loader = engine.loader_position(stop)
                fills = stop == chunk.end
                pending = Piece(
                    gradient, stop, chunk.first_draw, fills, loader, chains, chunk.buffers
                )
                gradient = stop
        if last is not None:
            jax.block_until_ready(last.chains)
            pace.took(last.stop - last.start)
            if flush or pending is None:
                write(engine, journal, last, bool(due) or pending is None, show)
            show.update(last)
    if ended:
        raise too_few(engine, gradient)
    return chains


def write(engine: Engine, journal: Journal, piece: Piece, save: bool, show: "Shown") -> None:
    """Append the finished draws of a piece's chunk; then, if asked, save a checkpoint."""
    settings = engine.settings
    num_draws = (piece.stop - settings.num_warmup) // settings.thinning
    count = num_draws - piece.first_draw
    if count > 0:
        host = engine.placement.fetch(piece.buffers)
        host = jax.tree.map(lambda x: x[:, :count], host)
        journal.draws.append(piece.first_draw, host)
        show.rhat.add(host["sample_stats"]["lp"])
    if save:
        journal.save(piece.stop, piece.chains, "sampling", num_draws, piece.loader)


class Shown:
    """What the progress bar shows of sampling."""

    def __init__(self, engine: Engine, adapted: Adapted, progress: Progress):
        self.engine, self.progress, self.rhat = engine, progress, RunningRhat()
        if progress.is_shown:
            self.step_size = engine.placement.fetch(adapted.parameters["step_size"])

    def update(self, piece: Piece) -> None:
        if not self.progress.is_shown:
            return
        settings, fetch = self.engine.settings, self.engine.placement.fetch
        draws = (piece.stop - settings.num_warmup) // settings.thinning
        self.progress.update(
            "sampling",
            piece.stop,
            draws * settings.num_chains,
            self.step_size,
            fetch(piece.chains.deflection),
            fetch(piece.chains.num_rejected),
            self.rhat.value(),
        )
