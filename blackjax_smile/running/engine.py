"""A run's compiled programs, fed with minibatches."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from blackjax.types import ArrayTree, PRNGKey

from blackjax_smile._jitted import remembered
from blackjax_smile.adaptation.setup import AdaptationOptions
from blackjax_smile.minibatch import MinibatchSampler
from blackjax_smile.running.compiled import Model, Programs, Shapes, compile_programs
from blackjax_smile.running.devices import Placement
from blackjax_smile.running.drawing import Chains, init_chains
from blackjax_smile.running.fingerprint import program_digest
from blackjax_smile.running.prefetch import Prefetcher
from blackjax_smile.running.programs import Keys, MinibatchGetter
from blackjax_smile.running.settings import Settings
from blackjax_smile.running.sources import HostSource
from blackjax_smile.running.warming import WarmupState

__all__ = ["Engine", "chain_keys"]


def chain_keys(rng_key: PRNGKey, num_chains: int) -> Keys:
    """Return the keys of every chain, as data.

    A chain's warmup takes the keys that `smile_adaptation` takes from its key,
    ``jax.random.split(jax.random.split(rng_key)[0], num_chains)[chain]``.
    """
    warmup_key, sample_key = jax.random.split(rng_key)
    keys = jax.random.split(warmup_key, num_chains)
    init, drive = jax.vmap(jax.random.split, out_axes=1)(keys)
    three = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(drive)
    sample = jax.random.split(sample_key, num_chains)
    return Keys(*(np.asarray(jax.random.key_data(key)) for key in (init, *three, sample)))


class Engine:
    """Moves all chains from one gradient to another.

    Use as a context manager: minibatches from the host are read by a thread.
    """

    def __init__(
        self,
        rng_key: PRNGKey,
        positions: ArrayTree,
        source: Callable | HostSource,
        logdensity_fn: Callable,
        options: AdaptationOptions,
        collect: Callable[[ArrayTree], ArrayTree],
        settings: Settings,
        placement: Placement,
    ):
        self.settings, self.placement = settings, placement
        self.positions = positions
        self.keys = chain_keys(rng_key, settings.num_chains)
        impl = str(jax.random.key_impl(rng_key))
        shared = settings.share_minibatches
        self.feed: Prefetcher | None = None
        self.example: ArrayTree
        #: What stands for the minibatches where none come from the host.
        self.sampler: MinibatchSampler | None = None
        if callable(source):
            self.example = jax.eval_shape(source, rng_key)
            is_sampler = isinstance(source, MinibatchSampler)
            if is_sampler:
                self.sampler = placement.replicate(source)
            # Chain, then rows.
            spread = placement.spread(1)
            getter = MinibatchGetter(None if is_sampler else source, False, False, spread)
        else:
            self.example = source.example()
            getter = MinibatchGetter(None, True, shared, placement.spread(0 if shared else 1))
            local = placement.local_chains
            self.feed = Prefetcher(
                source,
                lambda tree: placement.put_local(tree, 1, shared),
                settings.num_gradients,
                1 if shared else local.stop - local.start,
            )
        first = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0], tree), positions)
        #: What the functions compute and where minibatches come from, for a run's fingerprint.
        self.digests = {
            "logdensity_fn": program_digest(logdensity_fn, first, self.example),
            "collect": program_digest(collect, first),
            "minibatches": "function " + program_digest(source, rng_key)
            if callable(source)
            else source.description,
        }
        # Minibatches that are an argument of the programs are no part of them.
        compiled = ["logdensity_fn", "collect"] + ["minibatches"] * (
            getter.minibatch_fn is not None
        )
        model = Model(
            logdensity_fn,
            collect,
            options,
            settings.schedule,
            Shapes.of(first),
            Shapes.of(self.example),
            getter,
            impl,
            tuple(self.digests[name] for name in compiled),
        )
        self.programs: Programs = remembered(compile_programs, placement, model)

    def __enter__(self) -> "Engine":
        # Only now: the keys' copies on the devices are the run's.
        self.device_keys = Keys(*(self.placement.put(data) for data in self.keys))
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.feed is not None:
            self.feed.__exit__(*exception)

    def start_feed(self, gradient: int, position: dict | None) -> None:
        """Begin to read minibatches at a gradient."""
        if self.feed is not None:
            self.feed.start(gradient, position)

    def available(self, gradient: int, stop: int) -> tuple[int, tuple[Any, np.int32]]:
        """Return how far the minibatches at hand reach, and them; ``gradient`` if none are left."""
        if self.feed is None:
            return stop, (self.sampler, np.int32(0))
        block = self.feed.block_at(gradient)
        if block is None:
            return gradient, (None, np.int32(0))
        return min(stop, block.first + block.num_gradients), (
            block.minibatches,
            np.int32(block.first),
        )

    def loader_position(self, gradient: int) -> dict | None:
        """Return what a checkpoint needs of the minibatches."""
        return None if self.feed is None else self.feed.position_at(gradient)

    def init_probe(self) -> Any:
        return self.programs.init_probe(self.device_keys, self.placement.put(self.positions))

    def probe(self, carry: Any, start: int, stop: int, block: tuple) -> Any:
        return self.programs.probe(self.device_keys, carry, np.int32(start), np.int32(stop), *block)

    def init_warmup(self, carry: Any) -> WarmupState:
        return self.programs.init_warmup(carry)

    def warmup_steps(self, carry: WarmupState, start: int, stop: int, block: tuple) -> WarmupState:
        return self.programs.warmup_steps(
            self.device_keys, carry, np.int32(start), np.int32(stop), *block
        )

    def end_window(self, carry: WarmupState, index: int) -> WarmupState:
        return self.programs.end_window(self.device_keys, carry, np.int32(index))

    def init_chains(self, states: Any) -> Chains:
        return self.programs.init_chains(states)

    def sample(
        self,
        parameters: Any,
        chains: Chains,
        buffers: Any,
        start: int,
        stop: int,
        first_draw: int,
        block: tuple,
    ) -> tuple[Chains, Any]:
        settings = self.settings
        plan = np.asarray([first_draw, settings.num_warmup, settings.thinning], np.int32)
        span = (np.int32(start), np.int32(stop))
        return self.programs.sample(
            self.device_keys, parameters, chains, buffers, plan, *span, *block
        )

    def warmup_like(self) -> WarmupState:
        """Return the shapes of the warmup's state."""
        carry = jax.eval_shape(self.programs.warmup.init_probe, self.keys, self.positions)
        return jax.eval_shape(self.programs.warmup.init, carry)

    def chains_like(self, states: Any) -> Chains:
        """Return the shapes of the sampling's state."""
        return jax.eval_shape(init_chains, states)
