r"""Public API of the paper's always-on SMILE: it adapts in every step.

Two gradients per step (McLachlan's isokinetic integrator), on one minibatch. For
the sampler that this package recommends see `blackjax_smile.sgmcmc.smile`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from blackjax.mcmc.integrators import isokinetic_mclachlan
from blackjax.types import Array, ArrayLikeTree, PRNGKey

from blackjax_smile._checks import positive_integer
from blackjax_smile.sgmcmc import energy_tuner, online_transition, smile
from blackjax_smile.sgmcmc.online_transition import OnlineSmileInfo, OnlineSmileState
from blackjax_smile.sgmcmc.running_moments import init_running_moments

__all__ = [
    "OnlineSmileInfo",
    "OnlineSmileState",
    "as_top_level_api",
    "build_kernel",
    "init",
    "online_smile",
]


def init(
    position: ArrayLikeTree,
    logdensity_fn: Callable,
    rng_key: PRNGKey,
    step_size: float | Array,
    preconditioning: bool = True,
) -> OnlineSmileState:
    """Return the initial state of a chain, with a random momentum.

    A minibatch log-density is not evaluated: the first kick of a chain then uses
    a zero gradient.

    Parameters
    ----------
    position, logdensity_fn, rng_key
        As for `blackjax_smile.smile`.
    step_size
        Of the first step.
    preconditioning
        Whether the running deviations of the gradient scale the dynamics.

    Raises
    ------
    ValueError
        If the position has fewer than two elements or a leaf that is not float32 or
        wider, or no ``rng_key`` is given.
    """
    start = smile.init(position, logdensity_fn, rng_key, integrator=isokinetic_mclachlan)
    grad = start.logdensity_grad
    if grad is None:
        grad = jax.tree.map(jnp.zeros_like, start.position)
    step_size = jnp.asarray(step_size, start.logdensity.dtype)
    return OnlineSmileState(
        position=start.position,
        momentum=start.momentum,
        logdensity=start.logdensity,
        logdensity_grad=grad,
        grad_moments=init_running_moments(grad) if preconditioning else None,
        tuner=energy_tuner.init_energy_tuner(step_size),
    )


def build_kernel(
    num_integration_steps: int = 1,
    integrator: Callable = isokinetic_mclachlan,
) -> Callable:
    """Build a kernel of the always-on algorithm, preconditioned if the state is.

    Parameters
    ----------
    num_integration_steps
        Number of integrator steps per minibatch, of one energy error together.
    integrator
        One of BlackJAX's isokinetic integrators.

    Returns
    -------
    ``kernel(rng_key, state, logdensity_fn, L=inf, adaption_prob=0.1,
    adaption_strength=0.02, reset_prob=0.98, smoothing_factor=0.01, minibatch=None)
    -> (state, info)``.
    """
    smile.check_integrator(integrator)

    def kernel(
        rng_key: PRNGKey,
        state: OnlineSmileState,
        logdensity_fn: Callable,
        L: float | Array = jnp.inf,
        adaption_prob: float | Array = 0.1,
        adaption_strength: float | Array = 0.02,
        reset_prob: float | Array = 0.98,
        smoothing_factor: float | Array = 0.01,
        minibatch: Any = None,
    ) -> tuple[OnlineSmileState, OnlineSmileInfo]:
        propose_key, redraw_key = jax.random.split(rng_key)
        proposed, kinetic_change, energy_change = online_transition.propose(
            propose_key,
            state,
            logdensity_fn,
            minibatch,
            integrator,
            num_integration_steps,
            jnp.asarray(L),
            smoothing_factor,
        )
        tuner, energy_error = state.tuner, jnp.abs(energy_change)
        thresholds = energy_tuner.energy_thresholds(tuner, adaption_prob, reset_prob)
        new, rejected = online_transition.reject(
            redraw_key, state, proposed, energy_change, thresholds
        )
        # The first step of a minibatch chain has no energy error to learn from.
        has_error = (state.logdensity > -jnp.inf) | jnp.isinf(energy_change)
        updated = energy_tuner.update_energy_tuner(
            tuner,
            jnp.where(has_error, energy_error, jnp.nan),
            thresholds,
            adaption_prob,
            adaption_strength,
            smoothing_factor,
        )
        return new._replace(tuner=updated), OnlineSmileInfo(
            logdensity=new.logdensity,
            kinetic_change=kinetic_change,
            energy_change=energy_change,
            energy_error=energy_error,
            growth_threshold=thresholds.growth,
            shrinkage_threshold=thresholds.shrinkage,
            rejection_threshold=thresholds.rejection,
            energy_mean=tuner.moments.mean,
            energy_deviation=jnp.sqrt(tuner.moments.variance),
            step_size=tuner.step_size,
            is_divergent=rejected,
        )

    return kernel


def online_smile(
    logdensity_fn: Callable,
    step_size: float | Array | None = None,
    *,
    preconditioning: bool = True,
    adaption_prob: float | Array = 0.1,
    adaption_strength: float | Array = 0.02,
    reset_prob: float | Array = 0.98,
    smoothing_factor: float | Array = 0.01,
    L: float | Array = jnp.inf,
    num_integration_steps: int = 1,
    integrator: Callable = isokinetic_mclachlan,
) -> SamplingAlgorithm:
    r"""Always-on SMILE, the algorithm of [1]_: it tunes itself while it samples.

    Here to be reproduced and compared with. Its step size has no target and
    drifts, as a rule down, without end (see Notes); `blackjax_smile.smile` with
    `blackjax_smile.smile_adaptation` is what to sample with.

    The paper's variants:

    =============  ===================  =================  ==============
    variant        ``preconditioning``  ``adaption_prob``  ``reset_prob``
    =============  ===================  =================  ==============
    pSMILE         True                 0.1                0.98
    SMILE          False                0.1                0.98
    pSMILE-naive   True                 0                  1
    SMILE-naive    False                0                  1
    =============  ===================  =================  ==============

    Parameters
    ----------
    logdensity_fn
        ``(position, minibatch) -> logdensity``, or ``position -> logdensity``.
    step_size
        Of the first step; of all steps if ``adaption_prob`` is 0.
    preconditioning
        Whether to divide position updates and gradients by the running standard
        deviations of the gradient, clipped to [1e-2, 1e4] and divided by their
        root mean square.
    adaption_prob
        :math:`a`, the share of the steps that change the step size; 0: none.
    adaption_strength
        By what share they change it.
    reset_prob
        Quantile of the energy error beyond which a step is rejected; 1: only
        steps that are not finite are.
    smoothing_factor
        Weight of a new value in the running moments, bias-corrected.
    L
        Distance over which the momentum is refreshed. inf: not at all.
    num_integration_steps
        Number of integrator steps per minibatch.
    integrator
        One of BlackJAX's isokinetic integrators. McLachlan's takes two gradients
        a step, and uses that of the last step for its first kick.

    Returns
    -------
    A ``SamplingAlgorithm`` with the conventions of `blackjax_smile.smile`:
    ``init(position, rng_key)``, which needs no minibatch, and ``step(rng_key,
    state)`` or ``step(rng_key, state, minibatch)``.

    Raises
    ------
    ValueError
        For a missing or not positive ``step_size``, and for what is out of range.

    Notes
    -----
    With :math:`m, s` the running mean and standard deviation of the energy error,
    :math:`Q` is the quantile of the Gamma law of shape :math:`m^2 / s^2` and scale
    :math:`s^2 / m`. A step beyond :math:`Q(\mathrm{reset\_prob})` is rejected: the
    old state with a fresh momentum. Beyond :math:`Q(1 - 2a/3)` the step size
    shrinks, below :math:`Q(a/3)` it grows. The thresholds are quantiles of the
    statistic's own law, so where the Gamma law fits, :math:`\log \epsilon` falls by
    6.9e-4 a step at any step size: by a factor of 1000 in 10 000 steps. Normal energy
    changes are no such law: they let it rise by 0.7e-4 a step.

    A rejected step changes the momentum and the tuner alone. In the first 10 steps
    nothing adapts.

    References
    ----------
    .. [1] Sommer et al., "Can Microcanonical Langevin Dynamics Leverage
       Mini-Batch Gradient Noise?", arXiv:2602.06500.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> def logdensity_fn(x, noise):
    ...     return -0.5 * x @ x + noise @ x
    >>> psmile = blackjax_smile.online_smile(logdensity_fn, step_size=0.5)
    >>> state = psmile.init(jnp.zeros(10), jax.random.key(0))
    >>> noise = jax.random.normal(jax.random.key(1), (10,))
    >>> state, info = psmile.step(jax.random.key(2), state, noise)
    >>> bool(info.is_divergent)
    False
    """
    _check(step_size, adaption_prob, adaption_strength, reset_prob, smoothing_factor, L)
    num_integration_steps = positive_integer("num_integration_steps", num_integration_steps)
    kernel = build_kernel(num_integration_steps, integrator)

    def init_fn(position: ArrayLikeTree, rng_key: PRNGKey | None = None) -> OnlineSmileState:
        return init(position, logdensity_fn, rng_key, step_size, preconditioning)

    def step_fn(rng_key: PRNGKey, state: OnlineSmileState, minibatch: Any = None):
        return kernel(
            rng_key,
            state,
            logdensity_fn,
            L,
            adaption_prob,
            adaption_strength,
            reset_prob,
            smoothing_factor,
            minibatch,
        )

    return SamplingAlgorithm(init_fn, step_fn)


#: BlackJAX's name of it. The function has its own, which Python's errors of arguments say.
as_top_level_api = online_smile


def _check(step_size, adaption_prob, adaption_strength, reset_prob, smoothing_factor, L) -> None:
    if step_size is None:
        raise ValueError("online_smile needs the step_size of the first step.")
    ranges = {
        "step_size": (step_size, lambda x: (x > 0) & np.isfinite(x), "positive and finite"),
        "L": (L, lambda x: x > 0, "positive"),
        "adaption_prob": (adaption_prob, lambda x: (x >= 0) & (x <= 1), "in [0, 1]"),
        "adaption_strength": (adaption_strength, lambda x: (x >= 0) & (x < 1), "in [0, 1)"),
        "reset_prob": (reset_prob, lambda x: (x > 0) & (x <= 1), "in (0, 1]"),
        "smoothing_factor": (smoothing_factor, lambda x: (x > 0) & (x <= 1), "in (0, 1]"),
    }
    for name, (value, is_valid, what) in ranges.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(is_valid(np.asarray(value))):
            raise ValueError(f"{name} must be {what}, got {value}.")
