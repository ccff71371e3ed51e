r"""Public API of the SMILE kernel: stochastic microcanonical Langevin dynamics.

One minibatch and one gradient per step, in the order position, momentum,
position, refresh. See `blackjax_smile.sgmcmc.dynamics` for the formulas.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from blackjax.types import Array, ArrayLikeTree, PRNGKey
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile._checks import is_number
from blackjax_smile.minibatch_gradient import takes_minibatch, value_and_grad
from blackjax_smile.preconditioners.fixed import as_preconditioner, check_dimension
from blackjax_smile.preconditioners.metric import as_metric
from blackjax_smile.sgmcmc import dynamics, transition
from blackjax_smile.sgmcmc.transition import SmileInfo, SmileState

__all__ = [
    "SmileInfo",
    "SmileState",
    "as_top_level_api",
    "build_kernel",
    "check_integrator",
    "init",
    "smile",
]


def init(
    position: ArrayLikeTree,
    logdensity_fn: Callable,
    rng_key: PRNGKey,
    integrator: Callable | None = None,
) -> SmileState:
    """Return the initial state of a chain, with a random momentum.

    Parameters
    ----------
    position
        Where the chain starts, a pytree of floating-point arrays.
    logdensity_fn
        ``position -> logdensity``, or ``(position, minibatch) -> logdensity``;
        the latter is not evaluated here.
    rng_key
        Key of the momentum's draw.
    integrator
        The kernel's integrator: BlackJAX's keep the gradient in the state.

    Raises
    ------
    ValueError
        If the position has fewer than two elements, a leaf that is not floating,
        or no ``rng_key`` is given.
    """
    position = _tree.as_float_tree(position)
    d = pytree_size(position)
    if d < 2:
        raise ValueError(
            f"smile needs at least 2 parameters, the position has {d}: the dynamics divides "
            "by d - 1. Sample a single parameter with blackjax.nuts."
        )
    if rng_key is None:
        raise ValueError("smile.init draws a random momentum: pass it an rng_key.")
    residual = _tree.init_residual(position)
    if integrator is not None and jax.tree.leaves(residual):
        raise ValueError(
            "BlackJAX's integrators need leaves of float32 or wider; use the default integrator "
            "(integrator=None) for bfloat16 or float16 leaves."
        )
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(position)})
    if integrator is not None and len(dtypes) > 1:
        raise ValueError(
            f"BlackJAX's integrators put all leaves into one vector, of one dtype; got {dtypes}. "
            "Use the default integrator (integrator=None), or cast the position."
        )
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, _tree.accumulation_dtype(x)), position)
    dtype = _tree.scalar_dtype(position)
    logdensity, grad = jnp.full((), -jnp.inf, dtype), None
    if not takes_minibatch(logdensity_fn):
        (logdensity, _), grad = value_and_grad(logdensity_fn)(position)
    return SmileState(
        position=position,
        residual=residual,
        momentum=dynamics.random_momentum(rng_key, like),
        logdensity=logdensity.astype(dtype),
        kinetic_change=jnp.zeros((), dtype),
        logdensity_grad=None if integrator is None else grad,
        num_failures=jnp.zeros((), jnp.int32),
        clock=jnp.zeros((), jnp.int32),
    )


def check_integrator(integrator: Any) -> None:
    """Raise unless it may be one of BlackJAX's isokinetic integrators."""
    is_function = callable(integrator)
    # BlackJAX's other integrators are given the kinetic energy of a Euclidean momentum.
    if not is_function or "kinetic_energy_fn" in inspect.signature(integrator).parameters:
        given = getattr(integrator, "__name__", "a function") if is_function else repr(integrator)
        raise ValueError(
            "integrator must be one of BlackJAX's isokinetic integrators, such as "
            f"blackjax.mcmc.integrators.isokinetic_mclachlan, got {given}."
        )


def build_kernel(integrator: Callable | None = None, num_parts: int = 1) -> Callable:
    """Build a SMILE kernel.

    Parameters
    ----------
    integrator
        None for the position-first step with one gradient, the choice for
        minibatches; or one of BlackJAX's isokinetic integrators
        (`blackjax.mcmc.integrators.isokinetic_mclachlan`, ...), the efficient
        choice for full-batch gradients. With a minibatch, these take one more
        gradient than on the full batch: that of this minibatch at the start.
    num_parts
        2 or 4: evaluate the gradient on the halves or quarters of each minibatch
        and return the noise in the Info, as the adaptation does. One-gradient step
        only. 1: do not.

    Returns
    -------
    ``kernel(rng_key, state, logdensity_fn, inverse_mass_matrix, L, step_size,
    energy_threshold=inf, minibatch=None) -> (state, info)``.
    """
    if num_parts not in (1, 2, 4):
        raise ValueError(f"num_parts must be 1, 2 or 4, got {num_parts}.")
    if num_parts > 1 and integrator is not None:
        raise ValueError("num_parts > 1 needs the default integrator (integrator=None).")
    if integrator is not None:
        check_integrator(integrator)

    def kernel(
        rng_key: PRNGKey,
        state: SmileState,
        logdensity_fn: Callable,
        inverse_mass_matrix: Any,
        L: float | Array,
        step_size: float | Array,
        energy_threshold: float | Array = jnp.inf,
        minibatch: Any = None,
    ) -> tuple[SmileState, SmileInfo]:
        dtype = _tree.scalar_dtype(state.momentum)
        L, step_size = jnp.asarray(L, dtype), jnp.asarray(step_size, dtype)
        if integrator is None:
            preconditioner = as_preconditioner(inverse_mass_matrix)
            check_dimension(preconditioner, state.position)
            gradient_fn = value_and_grad(logdensity_fn, minibatch, num_parts)
            new, info = transition.kicked(state, gradient_fn, preconditioner, step_size)
        else:
            metric = as_metric(inverse_mass_matrix)
            preconditioner = metric.preconditioner
            check_dimension(preconditioner, state.position)
            new, info = transition.integrator_step(
                state, logdensity_fn, minibatch, integrator, metric, step_size
            )
        new, info = transition.reject(state, new, info, energy_threshold)
        # With one gradient the refresh acts in the middle of its kick, halfway.
        start = state.momentum if integrator is None else new.momentum
        momentum = transition.refreshed(rng_key, new, start, info, preconditioner, step_size, L)
        new = new._replace(momentum=momentum, clock=(state.clock + 1) % dynamics.CLOCK_CYCLE)
        if integrator is None:
            position, residual = transition.moved(state, momentum, info, preconditioner, step_size)
            new = new._replace(position=position, residual=residual)
        return new, info

    return kernel


def smile(
    logdensity_fn: Callable,
    L: float | Array = jnp.inf,
    step_size: float | Array | None = None,
    integrator: Callable | None = None,
    inverse_mass_matrix: Any = 1.0,
    energy_threshold: float | Array = jnp.inf,
) -> SamplingAlgorithm:
    r"""Stochastic microcanonical Langevin dynamics (SMILE) [1]_.

    A sampler for the posterior of a large data set or a neural network, driven
    by one minibatch gradient per step. Let `blackjax_smile.smile_adaptation`
    choose everything but the model. On a full-batch ``logdensity_fn`` it is a
    drop-in for ``blackjax.mclmc``.

    Parameters
    ----------
    logdensity_fn
        ``(position, minibatch) -> logdensity``, an unbiased estimate scaled to
        the full data set, or ``position -> logdensity``.
    L
        Distance, in whitened units, over which the momentum is refreshed. inf:
        the gradient noise alone refreshes it.
    step_size
        Distance, in whitened units, that a step covers.
    integrator
        None: one gradient per step, position first. Or one of BlackJAX's
        isokinetic integrators; see `build_kernel`.
    inverse_mass_matrix
        A scalar, a 1-D or 2-D array, BlackJAX's ``LowRankInverseMassMatrix``, or
        the preconditioner that the adaptation returns.
    energy_threshold
        A step that changes the energy by more than this is rejected.

    Returns
    -------
    A ``SamplingAlgorithm``: ``init(position, rng_key)`` and ``step(rng_key,
    state)`` for a full-batch, ``step(rng_key, state, minibatch)`` for a minibatch
    log-density. `blackjax_smile.with_minibatches` turns the latter into the former.

    Raises
    ------
    ValueError
        At once for a ``step_size`` that is missing or infinite, for a ``step_size``,
        ``L`` or ``energy_threshold`` that is not positive, and for an ``integrator``
        or ``inverse_mass_matrix`` that is none; by ``init`` and ``step`` for what does
        not fit the position.

    References
    ----------
    .. [1] Sommer et al., "Can Microcanonical Langevin Dynamics Leverage
       Mini-Batch Gradient Noise?", arXiv:2602.06500.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax, blackjax_smile
    >>> algorithm = blackjax_smile.smile(lambda x: -0.5 * x @ x, L=3.0, step_size=0.5)
    >>> state = algorithm.init(jnp.zeros(10), jax.random.key(0))
    >>> state, info = algorithm.step(jax.random.key(1), state)
    >>> bool(info.is_divergent)
    False
    """
    if step_size is None:
        raise ValueError("smile needs a step_size; smile_adaptation finds one.")
    for name, value in (("step_size", step_size), ("L", L), ("energy_threshold", energy_threshold)):
        is_traced = isinstance(value, jax.core.Tracer)
        if not is_number(value):
            raise ValueError(
                f"{name} must be one number, got {value!r}. Of several chains each has its own "
                "under jax.vmap."
            )
        if not is_traced and not np.asarray(value) > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
        if not is_traced and name == "step_size" and np.isinf(np.asarray(value)):
            raise ValueError(f"{name} must be finite, got {value}.")
    if integrator is None:
        inverse_mass_matrix = as_preconditioner(inverse_mass_matrix)
    else:
        inverse_mass_matrix = as_metric(inverse_mass_matrix)
    kernel = build_kernel(integrator)

    def init_fn(position: ArrayLikeTree, rng_key: PRNGKey | None = None) -> SmileState:
        return init(position, logdensity_fn, rng_key, integrator)

    def step_fn(rng_key: PRNGKey, state: SmileState, minibatch: Any = None):
        return kernel(
            rng_key,
            state,
            logdensity_fn,
            inverse_mass_matrix,
            L,
            step_size,
            energy_threshold,
            minibatch,
        )

    return SamplingAlgorithm(init_fn, step_fn)


#: BlackJAX's name of it. The function has its own, which Python's errors of arguments say.
as_top_level_api = smile
