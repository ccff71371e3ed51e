"""The compiled parts of the warmup: a few of its steps, for all chains."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile.adaptation.drive import StepHistory, history_row
from blackjax_smile.adaptation.schedule import Schedule
from blackjax_smile.adaptation.state import AdaptationState, Probe, WindowInfo
from blackjax_smile.adaptation.windows import WindowedAdaptation
from blackjax_smile.running.programs import Block, Keys, MinibatchGetter, keys_at
from blackjax_smile.sgmcmc import smile
from blackjax_smile.sgmcmc.smile import SmileState

__all__ = ["Warmup", "WarmupState", "adapted_parameters"]


class WarmupState(NamedTuple):
    """State of the warmup of all chains; every leaf leads with the chain."""

    adaptation: AdaptationState
    num_finite_probes: Array
    windows: WindowInfo
    steps: StepHistory


class Warmup(NamedTuple):
    """The warmup's programs; all chains at once, not yet compiled.

    The same steps with the same keys as `adaptation.drive.run_on_device` takes.
    """

    adaptation: WindowedAdaptation
    schedule: Schedule
    minibatches: MinibatchGetter
    impl: str

    def init_probe(self, keys: Keys, positions: ArrayTree) -> tuple[SmileState, Probe]:
        init_keys = jax.random.wrap_key_data(keys.init, impl=self.impl)
        sampler = jax.vmap(lambda x, key: smile.init(x, self.adaptation.logdensity_fn, key))(
            positions, init_keys
        )
        return sampler, jax.vmap(self.adaptation.init_probe)(sampler)

    def probe(self, keys: Keys, carry, start: Array, stop: Array, block: Block):
        sampler, probed = carry

        def body(i, probed):
            batches = self.minibatches(keys_at(keys.probe, i, self.impl), i, block)
            axes = (0, 0, self.minibatches.axis)
            return jax.vmap(self.adaptation.probe, axes)(sampler, probed, batches)

        return sampler, jax.lax.fori_loop(start, stop, body, probed)

    def init(self, carry) -> WarmupState:
        sampler, probed = carry
        state = jax.vmap(self.adaptation.init)(sampler, probed)
        epsilon = state.step_size.step_size
        scalars = jnp.zeros((len(epsilon), sum(self.schedule.windows)), epsilon.dtype)
        key = jax.random.key(0, impl=self.impl)
        like = jax.eval_shape(
            lambda state: self.adaptation.end_window(key, state, 0)[1],
            jax.tree.map(lambda x: x[0], state),
        )
        shape = (len(epsilon), len(self.schedule.windows))
        windows = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), like)
        history = StepHistory(scalars, scalars, scalars, scalars.astype(bool))
        return WarmupState(state, probed.num_finite, windows, history)

    def steps(self, keys: Keys, carry: WarmupState, start: Array, stop: Array, block: Block):
        """Take the gradients from ``start`` to ``stop``, all in one window."""

        def body(gradient, carry):
            state, history = carry
            i = gradient - self.schedule.num_probes
            both = jax.vmap(jax.random.split)(keys_at(keys.step, i, self.impl))
            batches = self.minibatches(both[:, 1], gradient, block)
            axes = (0, 0, self.minibatches.axis)
            new, info = jax.vmap(self.adaptation.step, axes)(both[:, 0], state, batches)
            row = history_row(state, info)
            return new, jax.tree.map(lambda xs, x: xs.at[:, i].set(x), history, row)

        state, steps = jax.lax.fori_loop(start, stop, body, (carry.adaptation, carry.steps))
        return carry._replace(adaptation=state, steps=steps)

    def end_window(self, keys: Keys, carry: WarmupState, index: Array) -> WarmupState:
        window_keys = jax.vmap(
            lambda key: jax.random.split(key, len(self.schedule.windows))[index]
        )(jax.random.wrap_key_data(keys.window, impl=self.impl))
        windows_left = len(self.schedule.slow_windows) - index
        state, info = jax.vmap(self.adaptation.end_window, (0, 0, None))(
            window_keys, carry.adaptation, windows_left
        )
        windows = jax.tree.map(lambda xs, x: xs.at[:, index].set(x), carry.windows, info)
        return carry._replace(adaptation=state, windows=windows)


def adapted_parameters(warmup: WarmupState) -> dict[str, Any]:
    """Return what `smile` takes, every leaf with the chain's axis."""
    return {
        "L": warmup.windows.L[:, -1],
        "step_size": warmup.adaptation.step_size.step_size,
        "inverse_mass_matrix": warmup.adaptation.preconditioner,
        "energy_threshold": warmup.windows.energy_threshold[:, -1],
    }
