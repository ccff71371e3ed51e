"""The adaptation as pure functions of its state: probe, step, end of a window."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from blackjax.types import Array, ArrayTree, PRNGKey
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile._batching import unwrap_keys
from blackjax_smile.adaptation import energy, refresh_length, restraint, step_size
from blackjax_smile.adaptation.pooling import SEPARATE, Pool
from blackjax_smile.adaptation.state import AdaptationState, Probe, WindowInfo, WindowStatistics
from blackjax_smile.minibatch_gradient import (
    anisotropy,
    init_isotropy,
    update_isotropy,
    value_and_grad,
)
from blackjax_smile.preconditioners.base import PreconditionerEstimator, curvature_step
from blackjax_smile.preconditioners.moments import init_moments, update_moments, variance_of
from blackjax_smile.preconditioners.variances import geometric_mean
from blackjax_smile.sgmcmc import dynamics
from blackjax_smile.sgmcmc.smile import SmileInfo, SmileState

__all__ = ["WindowedAdaptation"]

#: Share of the position's size (at least of 1) that the first step moves: what float32 resolves.
FIRST_MOVE = 1e-5


class WindowedAdaptation(NamedTuple):
    """The adaptation of one kernel to one model.

    kernel
        Built with the same ``num_parts``.
    logdensity_fn
        ``(position, minibatch) -> logdensity``.
    estimator
        Of the preconditioner.
    target_deflection, rule
        What sets the step size; the target is in radians.
    num_parts
        Into how many parts each minibatch is split, 2 or 4.
    pool
        What the chains share.
    """

    kernel: Callable
    logdensity_fn: Callable
    estimator: PreconditionerEstimator
    target_deflection: float
    num_parts: int = 2
    rule: step_size.StepSizeRule = step_size.DEFLECTION
    pool: Pool = SEPARATE

    def init_probe(self, sampler: SmileState) -> Probe:
        """Return an empty probe at the initial position."""
        like = sampler.momentum
        moments = init_moments(like)
        return Probe(moments, jax.tree.map(jnp.zeros_like, like), jnp.zeros((), jnp.int32))

    def probe(self, sampler: SmileState, probe: Probe, minibatch: ArrayTree) -> Probe:
        """Take one more gradient at the initial position."""
        gradient_fn = value_and_grad(self.logdensity_fn, minibatch, self.num_parts)
        (logdensity, split), grad = gradient_fn(sampler.position)
        finite = jnp.isfinite(logdensity) & _tree.all_finite(split)
        grad = jax.tree.map(lambda g, like: g.astype(like.dtype), grad, probe.grad)
        moments = probe.moments
        for noise in _tree.unstack(split.noise):
            moments = update_moments(moments, noise, noise)
        return _tree.select(finite, Probe(moments, grad, probe.num_finite + 1), probe)

    def init(self, sampler: SmileState, probe: Probe) -> AdaptationState:
        """Return the state at the start of the first window."""
        moments = self.pool.sums(probe.moments, jax.tree.map(jnp.zeros_like, probe.moments))
        variance = variance_of(moments)
        # Where a gradient vanishes at the start (a factor of one that is zero), its noise says
        # nothing: no parameter is to move more freely than most before a window was seen.
        typical = geometric_mean(variance)
        held = restraint.initial_restraint(variance, typical, probe.grad)
        held = jax.tree.map(self.pool.median, held)
        variance = jax.tree.map(lambda v, c: v + typical.astype(v.dtype) / c**2, variance, held)
        preconditioner = self.estimator.init(variance)
        d = pytree_size(sampler.position)
        velocity = preconditioner.to_position(sampler.momentum)
        size = jnp.sqrt(_tree.vdot(sampler.position, sampler.position) / d)
        move = jnp.sqrt(_tree.vdot(velocity, velocity) / d)
        small = FIRST_MOVE * jnp.maximum(size, 1) / move
        grad_squares = self._squares(preconditioner.whiten(probe.grad))
        grad_norm = jnp.sqrt(optax.tree_utils.tree_sum(grad_squares))
        # Where the gradient is that large already, it does set the first step.
        small = jnp.fmin(small, self.target_deflection * (d - 1) / grad_norm)
        return AdaptationState(
            sampler=sampler,
            preconditioner=preconditioner,
            step_size=self.rule.init(self.pool.median(small), grad_norm, d, self.target_deflection),
            natural_steps=jnp.full_like(small, jnp.inf),
            L_steps=jnp.zeros_like(small),
            target_deflection=jnp.full_like(small, self.target_deflection),
            grad=probe.grad,
            grad_squares=grad_squares,
            window=self._init_window(sampler.momentum, preconditioner),
        )

    def _squares(self, whitened: ArrayTree) -> ArrayTree:
        return restraint.products(whitened, whitened, self.estimator.vector_limit)

    def _init_window(self, momentum: ArrayTree, preconditioner: Any) -> WindowStatistics:
        dtype = _tree.scalar_dtype(momentum)
        return WindowStatistics(
            noise=self.estimator.init_statistics(preconditioner),
            isotropy=init_isotropy(momentum, self.num_parts - 1),
            path=refresh_length.init_path(momentum),
            energy=energy.init_energy(dtype),
            gradient=restraint.init_moments(momentum, self.estimator.vector_limit),
            deflection=jnp.zeros((), dtype),
            alignment=jnp.zeros((), dtype),
            num_rejected=jnp.zeros((), jnp.int32),
        )

    def _not_too_short(self, noise_length: Array, state: AdaptationState) -> Array:
        """Return the length over which the noise turns the momentum where a step is on target.

        On the way it is longer, and the same formula would have the refresh forget the way.
        """
        epsilon = state.step_size.step_size
        on_target = epsilon / state.target_deflection**2
        return jnp.maximum(noise_length, on_target if self.rule.holds_target else 0)

    def _refresh_length(self, state: AdaptationState) -> Array:
        """Return the length in use."""
        epsilon = state.step_size.step_size
        # Before a window has been seen: as much refresh as the noise would give.
        d = pytree_size(state.sampler.position)
        first = refresh_length.noise_length(epsilon, jnp.ones_like(epsilon), d)
        first = self._not_too_short(first, state)
        return jnp.where(state.L_steps > 0, state.L_steps * epsilon, first)

    def step(
        self, rng_key: PRNGKey, state: AdaptationState, minibatch: ArrayTree
    ) -> tuple[AdaptationState, SmileInfo]:
        """Move the chain by one step and take in what it shows."""
        kernel_key, complement_key = jax.random.split(rng_key)
        d = pytree_size(state.sampler.position)
        epsilon = state.step_size.step_size
        sampler, info = self.kernel(
            kernel_key,
            state.sampler,
            self.logdensity_fn,
            state.preconditioner,
            self._refresh_length(state),
            epsilon,
            jnp.inf,
            minibatch,
        )
        accepted = ~info.is_divergent
        whitened_grad = state.preconditioner.whiten(info.gradient.mean)

        key_data, wrap = unwrap_keys(complement_key)

        def take_in(window: WindowStatistics) -> WindowStatistics:
            change = jax.tree.map(
                lambda new, old: new.astype(old.dtype) - old, info.gradient.mean, state.grad
            )
            zero, one = jnp.zeros_like(epsilon), jnp.ones_like(epsilon)
            noise, total = window.noise, []
            draws = _tree.unstack(info.gradient.noise)
            keys = jax.random.split(wrap(key_data), len(draws))
            for key, draw in zip(keys, draws, strict=True):
                whitened = state.preconditioner.whiten(draw)
                complement = state.preconditioner.refresh_noise(
                    key, sampler.momentum, zero, one, _tree.random_signs
                )
                noise = self.estimator.update(noise, draw, whitened)
                total.append(jax.tree.map(jnp.add, whitened, complement))
            moved = jax.tree.map(lambda u: epsilon * u, state.sampler.momentum)
            step = curvature_step(state.preconditioner, change, moved, whitened_grad)
            return window._replace(
                noise=self.estimator.update_gradient(noise, info.gradient.mean, step),
                isotropy=update_isotropy(
                    window.isotropy, jax.tree.map(lambda *leaves: jnp.stack(leaves), *total)
                ),
                path=refresh_length.update_path(
                    window.path, state.sampler.momentum, sampler.momentum, epsilon
                ),
                energy=energy.update_energy(window.energy, info.energy_change),
                deflection=window.deflection + info.deflection,
                alignment=window.alignment + info.alignment,
            )

        window = jax.lax.cond(accepted, take_in, lambda window: window, state.window)
        window = window._replace(
            # Outside of the branch: the gradient itself need not be kept for it.
            gradient=restraint.update_moments(
                window.gradient,
                info.gradient,
                whitened_grad,
                (state.sampler.momentum, sampler.momentum),
                *(epsilon, accepted, self.estimator.vector_limit),
            ),
            num_rejected=window.num_rejected + info.is_divergent.astype(window.num_rejected.dtype),
        )
        grad = jax.tree.map(
            lambda new, old: jnp.where(accepted, new.astype(old.dtype), old),
            info.gradient.mean,
            state.grad,
        )
        tuned = self.rule.update(state.step_size, info, d, state.target_deflection)
        tuned = self.pool.replace_medians(tuned, "step_size")
        new = state._replace(
            sampler=sampler,
            step_size=tuned,
            grad=grad,
            grad_squares=_tree.select(accepted, self._squares(whitened_grad), state.grad_squares),
            window=window,
        )
        return new, info._replace(gradient=None)

    def _fit(self, moments: Any, state: AdaptationState, is_last: Array) -> tuple[Any, ArrayTree]:
        """Return the map that whitens the window's noise, restrained where there is none.

        And the squares of the last gradient under it.
        """
        limit = self.estimator.vector_limit
        gradient = self.pool.sums(state.window.gradient, restraint.init_moments(state.grad, limit))
        fitted = self.estimator.fit(moments, state.preconditioner)
        squares = self._squares(fitted.whiten(state.grad)), state.grad_squares
        memory = 2 / state.target_deflection**2  # in so many steps the noise turns the momentum
        # No secants on the way, where what is far from its place is to wait: the scale of effects
        # that are all still zero would fall with them.
        scale = restraint.restraint(gradient, squares, is_last, memory, state.grad)
        scale = jax.tree.map(self.pool.median, scale)
        restrained = restraint.restrain(self.estimator, fitted, scale, state.grad)
        return restrained, self._squares(restrained.whiten(state.grad))

    def end_window(
        self, rng_key: PRNGKey, state: AdaptationState, windows_left: int | Array
    ) -> tuple[AdaptationState, WindowInfo]:
        """Close a window; unless it is the last, start anew with a new preconditioner."""
        is_slow = windows_left > 0
        window, epsilon = state.window, state.step_size.step_size
        d = pytree_size(state.sampler.position)
        empty = self.estimator.init_statistics(state.preconditioner)
        moments = self.pool.sums(window.noise, empty)
        isotropy = self.pool.sums(window.isotropy, init_isotropy(state.sampler.momentum))
        mean_variance, excess, significant = anisotropy(isotropy)
        smallest, largest = self.estimator.noise_eigenvalues(moments, state.preconditioner)
        # The fast window is too short to show how far the chain ranges.
        natural = jnp.where(
            is_slow, refresh_length.natural_length(window.path), state.natural_steps * epsilon
        )
        natural = self.pool.median(natural)
        noise = refresh_length.noise_length(epsilon, mean_variance, d)
        turning = 1 / (1 / noise + 1 / self._refresh_length(state))
        diffusive = refresh_length.diffusive_length(window.path, epsilon, turning)
        L = refresh_length.choose_length(natural, noise, significant, epsilon)
        searching_L = refresh_length.choose_length(
            natural,
            self._not_too_short(noise, state),
            significant,
            epsilon,
            refresh_length.MAX_SEARCHING_REFRESH,
        )
        info = WindowInfo(
            step_size=epsilon,
            L=L,
            deflection=window.deflection / window.energy.count,
            alignment=window.alignment / window.energy.count,
            target_deflection=state.target_deflection,
            num_rejected=window.num_rejected,
            anisotropy=excess,
            noise_variance=mean_variance,
            smallest_eigenvalue=smallest,
            largest_eigenvalue=largest,
            natural_length=natural,
            noise_length=noise,
            diffusive_length=diffusive,
            energy_threshold=self.pool.median(energy.energy_threshold(window.energy)),
        )

        def restart(state: AdaptationState) -> AdaptationState:
            preconditioner, grad_squares = self._fit(moments, state, windows_left == 1)
            new, old = map(optax.tree_utils.tree_sum, (grad_squares, state.grad_squares))
            growth = jnp.sqrt(new / old)
            share = refresh_length.deflection_share(natural, noise, diffusive)
            # Only the last slow window is long enough to know.
            share = jnp.where(self.rule.holds_target & (windows_left == 1), share, 1)
            target = share * state.target_deflection
            tuned = self.rule.restart(state.step_size, growth, d, target, windows_left == 1)
            tuned = self.pool.replace_medians(tuned, "step_size")
            momentum = dynamics.random_momentum(rng_key, state.sampler.momentum)
            return AdaptationState(
                sampler=state.sampler._replace(momentum=momentum),
                preconditioner=preconditioner,
                step_size=tuned,
                natural_steps=natural / (share * epsilon),
                # As the length over which the noise turns the momentum.
                L_steps=searching_L / (share**2 * epsilon),
                target_deflection=target,
                grad=state.grad,
                grad_squares=grad_squares,
                window=self._init_window(momentum, preconditioner),
            )

        return jax.lax.cond(is_slow, restart, lambda state: state, state), info
