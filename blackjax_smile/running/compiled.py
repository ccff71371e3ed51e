"""The compiled programs of a run, which runs of the same model share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree
from blackjax_smile.adaptation.schedule import Schedule
from blackjax_smile.adaptation.setup import AdaptationOptions, build_adaptation
from blackjax_smile.running.devices import Placement
from blackjax_smile.running.drawing import build_sampling, init_chains
from blackjax_smile.running.programs import Block, MinibatchGetter
from blackjax_smile.running.warming import Warmup
from blackjax_smile.sgmcmc import smile

__all__ = ["Model", "Programs", "Shapes", "compile_programs"]


class Shapes(NamedTuple):
    """Shapes and dtypes of a tree, comparable."""

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: ArrayTree) -> "Shapes":
        leaves, treedef = jax.tree.flatten(tree)
        return cls(treedef, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    @property
    def zeros(self) -> ArrayTree:
        return jax.tree.unflatten(self.treedef, [jnp.zeros(x.shape, x.dtype) for x in self.leaves])


class Model(NamedTuple):
    """What a run's programs are made of; equal ones are compiled once.

    collect
        ``position -> tree``: what is kept of a draw.
    position, minibatch
        Of one chain.
    impl
        Of the random keys.
    digests
        Of what the functions compute: a variable that they read may have changed.
    """

    logdensity_fn: Callable
    collect: Callable
    options: AdaptationOptions
    schedule: Schedule
    position: Shapes
    minibatch: Shapes
    minibatches: MinibatchGetter
    impl: str
    digests: tuple[str, ...]

    def collect_named(self, position: ArrayTree) -> dict[str, Array]:
        """Return what is kept, by name."""
        return _tree.named_leaves(self.collect(position))


class Programs(NamedTuple):
    """Compiled functions of all chains, and the warmup that they were made of."""

    warmup: Warmup
    init_probe: Callable
    probe: Callable
    init_warmup: Callable
    warmup_steps: Callable
    end_window: Callable
    init_chains: Callable
    sample: Callable


def compile_programs(placement: Placement, model: Model) -> Programs:
    """Return the programs, to be compiled when they are first called."""
    getter = model.minibatches
    adaptation = build_adaptation(
        smile.build_kernel,
        model.logdensity_fn,
        model.options,
        model.position.zeros,
        model.schedule,
        model.minibatch.zeros,
    )
    warmup = Warmup(adaptation, model.schedule, getter, model.impl)
    sample = build_sampling(model.logdensity_fn, getter, model.collect_named, model.impl)
    # Start, stop and the block.
    span = "rr" + ("b" if getter.in_blocks and not getter.is_shared else "r") + "r"
    run = placement.compile
    return Programs(
        warmup,
        run(warmup.init_probe, "cc", num_outputs=2),
        run(
            lambda keys, carry, *span: warmup.probe(keys, carry, *_span(span)),
            "cc" + span,
            donate=(1,),
            num_outputs=2,
        ),
        run(warmup.init, "c"),
        run(
            lambda keys, carry, *span: warmup.steps(keys, carry, *_span(span)),
            "cc" + span,
            donate=(1,),
        ),
        run(warmup.end_window, "ccr", donate=(1,)),
        run(init_chains, "c"),
        run(
            lambda keys, parameters, chains, buffers, plan, *span: sample(
                keys, parameters, chains, buffers, plan, *_span(span)
            ),
            "ccccr" + span,
            donate=(3,),
            num_outputs=2,
        ),
    )


def _span(arguments: tuple) -> tuple:
    start, stop, *block = arguments
    return start, stop, Block(*block)
