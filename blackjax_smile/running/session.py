"""A run from where it stands to its end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree
from blackjax_smile.running.drawing import Chains, init_chains, row_of
from blackjax_smile.running.engine import Engine
from blackjax_smile.running.journal import Adapted, Journal
from blackjax_smile.running.loops import run_sampling, run_warmup
from blackjax_smile.running.progress import Progress
from blackjax_smile.running.settings import Settings
from blackjax_smile.running.store import axis_names
from blackjax_smile.running.warmup_checks import (
    check_moved,
    warn_of_chains_on_the_way,
    warn_of_epochs,
    warn_of_rejections,
)
from blackjax_smile.sgmcmc import smile

__all__ = ["Kept", "run"]

#: Bytes of a chunk's draws, over all chains, unless the chunk's size is given.
CHUNK_BYTES = 32 * 2**20

#: A chunk of more draws gains nothing.
MAX_CHUNK = 5000


class Kept:
    """What is kept of each draw: a function of the position, and its names and shapes.

    Called with a position it returns the collected leaves by name.
    """

    def __init__(
        self,
        collect: Callable[[ArrayTree], ArrayTree],
        position: ArrayTree,
        dtype: Any,
        dims: Mapping[str, Sequence[str]] | None,
        coords: Mapping[str, Any] | None,
    ):
        self.collect = collect
        self.dims, self.coords = dict(dims or {}), dict(coords or {})
        try:
            jnp.dtype(dtype)
        except TypeError as error:
            raise ValueError(f"dtype must be a dtype such as 'float16', got {dtype!r}.") from error
        try:
            collected = jax.eval_shape(collect, position)
        except TypeError as error:
            raise ValueError(
                f"collect must be a function position -> arrays, but calling it failed: {error}"
            ) from error
        self.treedef = jax.tree.structure(collected)
        leaves = _tree.named_leaves(collected)
        self.names = list(leaves)
        if not leaves:
            raise ValueError("collect must return what is to be kept of a position; got no array.")
        if unknown := set(self.dims) - set(leaves):
            raise ValueError(
                f"dims names {sorted(unknown)}, but what is kept of a draw is {self.names}."
            )
        for name, names in self.dims.items():
            if isinstance(names, str):
                raise ValueError(
                    f"dims[{name!r}] must be a list such as [{names!r}], got {names!r}."
                )
            if taken := sorted({"chain", "draw", *leaves} & set(names)):
                raise ValueError(
                    f"dims[{name!r}] uses {taken}, the names of other axes or of variables: "
                    "rename them."
                )
            if len(set(names)) < len(names):
                raise ValueError(f"dims[{name!r}] names two axes alike: {list(names)}.")
        if reserved := {"chain", "draw"} & set(leaves):
            raise ValueError(f"ArviZ keeps the names 'chain' and 'draw': rename {reserved}.")
        for name, names in self.dims.items():
            if len(names) != len(leaves[name].shape):
                raise ValueError(
                    f"dims[{name!r}] names {len(names)} dimensions, but {name} has shape "
                    f"{leaves[name].shape} after chain and draw."
                )
        self._check_coords(leaves)
        #: One draw of one chain, by group and variable.
        self.rows = {
            "posterior": {
                name: jax.ShapeDtypeStruct(leaf.shape, _stored_dtype(leaf.dtype, dtype))
                for name, leaf in leaves.items()
            },
            "sample_stats": jax.eval_shape(lambda: _statistics_of(position)),
        }

    def _check_coords(self, leaves: Mapping[str, Any]) -> None:
        """Raise if a dimension has two lengths, its coordinates another one or there is none."""
        sizes: dict[str, int] = {}
        for name, names in self.dims.items():
            for dim, size in zip(names, leaves[name].shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(
                        f"dims gives the dimension {dim!r} two lengths, {sizes[dim]} and {size} "
                        f"(in {name}): name them differently."
                    )
        for dim, size in sizes.items():
            if dim in self.coords and len(self.coords[dim]) != size:
                raise ValueError(
                    f"coords[{dim!r}] has {len(self.coords[dim])} entries, but the dimension has "
                    f"length {size}."
                )
        known = {"chain"}.union(*(axis_names(n, leaf, self.dims) for n, leaf in leaves.items()))
        if unknown := set(self.coords) - known:
            raise ValueError(
                f"coords names {sorted(unknown)}, but the dimensions of what is kept of a draw are "
                f"{sorted(known)}: dims gives them names."
            )

    def __call__(self, position: ArrayTree) -> dict[str, Array]:
        return _tree.named_leaves(self.collect(position))

    def chunk_size(self, settings: Settings) -> int:
        """Return the number of draws in a chunk."""
        if settings.chunk_size is not None:
            return settings.chunk_size
        leaves = jax.tree.leaves(self.rows)
        size = settings.num_chains * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return min(max(CHUNK_BYTES // size, 1), MAX_CHUNK)


def _statistics_of(position: ArrayTree) -> dict[str, Array]:
    state = smile.init(position, lambda position, minibatch: 0.0, jax.random.key(0))
    chains = init_chains(jax.tree.map(lambda x: jnp.asarray(x)[None], state))
    statistics = row_of(chains, lambda position: position)["sample_stats"]
    return {name: values[0] for name, values in statistics.items()}


def _stored_dtype(dtype: Any, wanted: Any) -> np.dtype:
    """Return the dtype in which a leaf is stored: NumPy and Zarr know no bfloat16."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(dtype)
    wanted = jnp.dtype(wanted or dtype)
    if not jnp.issubdtype(wanted, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype for the stored draws, got {wanted}.")
    return np.dtype(wanted if np.issubdtype(wanted, np.floating) else np.float32)


def run(
    engine: Engine, journal: Journal, kept: Kept, progress_bar: bool | str
) -> tuple[Adapted, Chains]:
    """Resume or start a run and take it to its end."""
    settings, placement = engine.settings, engine.placement
    try:
        resume = journal.resume(engine.warmup_like(), engine.chains_like, settings.num_samples)
        journal.prepare_draws(resume, kept.dims, kept.coords)
        if resume.gradient < settings.num_gradients:
            engine.start_feed(resume.gradient, resume.loader)
        show = progress_bar if placement.is_main else False
        progress = Progress(show, settings.num_gradients, resume.gradient)
        try:
            adapted = resume.adapted
            if adapted is None:
                adapted = run_warmup(engine, journal, resume, progress)
            # A resumed run is told again what its warmup came to.
            going = ~check_moved(engine, adapted)
            warn_of_chains_on_the_way(engine, adapted)
            told = warn_of_epochs(engine)
            schedule = settings.schedule
            rejected = placement.fetch(adapted.windows.num_rejected)[:, -1]
            warn_of_rejections(rejected[going], schedule.fast_window, "at the end of the warmup")
            chunk_size = kept.chunk_size(settings)
            chains = run_sampling(engine, journal, resume, adapted, kept.rows, chunk_size, progress)
            rejected = placement.fetch(chains.num_rejected)[going]
            num_steps = settings.num_gradients - settings.num_warmup
            warn_of_rejections(rejected, num_steps, "of the sampling")
            if not told:
                warn_of_epochs(engine)
        finally:
            progress.close()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX reports a lost connection as either.
        signs = ("Gloo", "NCCL", "peer", "heartbeat", "UNAVAILABLE", "DEADLINE", "coordination")
        if not placement.is_distributed or not any(sign in str(error) for sign in signs):
            raise
        raise RuntimeError(
            "The run stopped: another of its processes does not answer any more, or failed. "
            "Start the same command again on the processes and devices that you have, and it "
            f"resumes from the last checkpoint. ({str(error).splitlines()[0]})"
        ) from error
    return adapted, chains
