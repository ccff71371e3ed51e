"""Warmup of `smile`: nothing to set by hand, frozen before sampling."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.base import AdaptationResults
from blackjax.base import AdaptationAlgorithm
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

from blackjax_smile import _tree
from blackjax_smile._averaging import check_averages
from blackjax_smile._checks import check_key
from blackjax_smile._jitted import jitted
from blackjax_smile.adaptation.drive import Record, StepHistory, run_on_device, run_on_host
from blackjax_smile.adaptation.full_batch import adapt_full_batch
from blackjax_smile.adaptation.pooling import CHAIN_AXIS, Pool, check_axis
from blackjax_smile.adaptation.schedule import Schedule, build_schedule
from blackjax_smile.adaptation.setup import AdaptationOptions, build_adaptation, check_algorithm
from blackjax_smile.adaptation.state import WindowInfo
from blackjax_smile.minibatch import check_no_data_set, check_random
from blackjax_smile.minibatch_gradient import checked_scalar
from blackjax_smile.preconditioners.base import PreconditionerEstimator

__all__ = ["SmileAdaptationInfo", "smile_adaptation"]


class SmileAdaptationInfo(NamedTuple):
    """What the warmup did.

    schedule
        Numbers of gradients: probes, slow windows, the fast window.
    num_finite_probes
        Number of finite gradients at the initial position.
    windows
        `WindowInfo` with one entry per window: the slow ones, then the fast one,
        whose anisotropy says whether the frozen preconditioner can be trusted.
    steps
        `StepHistory`, scalars of every step of the windows.
    averages
        Whether the log-density averages over the rows of its minibatch, as it must. Under
        `jax.vmap`, where no error can be raised, this alone says it.
    """

    schedule: Schedule
    num_finite_probes: Array
    windows: WindowInfo
    steps: StepHistory
    averages: Array


def smile_adaptation(
    algorithm: Any,
    logdensity_fn: Callable,
    minibatch_fn: Callable[[PRNGKey], ArrayTree] | Iterable[ArrayTree] | None = None,
    *,
    preconditioner: str | PreconditionerEstimator = "auto",
    target_deflection: float = 0.25,
    tuner: str = "deflection",
    dense_limit: int = 1000,
    spectrum_limit: int = 200,
    pooled: bool = False,
) -> AdaptationAlgorithm:
    r"""Find the parameters of `smile`, then freeze them.

    The warmup measures the covariance of the gradient noise on the two halves of
    each minibatch, at no cost, and fits the map that whitens it in slow windows
    of doubling length; sets the step size by its deflection, a geometric mean
    that one spike cannot ruin; chooses the refresh length from the whitened
    path and the noise that is left; and sets the energy threshold. Mirrors
    `blackjax.window_adaptation`.

    Parameters
    ----------
    algorithm
        `blackjax_smile.smile`.
    logdensity_fn
        ``(position, minibatch) -> logdensity``, which averages over the rows of
        the minibatch and scales to the full data set; or ``position ->
        logdensity`` when there are no minibatches.
    minibatch_fn
        ``rng_key -> minibatch`` with an even number of rows; or an iterable of
        minibatches on the host (a data loader, a generator; rows drawn with
        replacement), of which the warmup takes ``num_steps``; or None for a full-batch
        log-density: BlackJAX's tuner of MCLMC then does the work.
    preconditioner
        ``"dense"``, ``"kronecker"`` (for neural networks: two factors per matrix of
        parameters), ``"low_rank"`` (a diagonal, corrected in a few noisy directions),
        ``"diagonal"``, ``"identity"``, a `PreconditionerEstimator`, or
        ``"auto"``: dense for a model of up to ``dense_limit`` parameters if the last
        slow window holds enough steps for it, else kronecker if there is a matrix
        among the parameters, else diagonal.
    target_deflection
        Angle in radians by which the gradient of a step turns the momentum, to start
        with. Before the last window it is lowered, to a tenth at most, where the noise
        alone turns the momentum more often than the chain needs: the bias by skewed
        noise (a rare class and small batches) falls with its square. On the way from a
        distant start the angle may be a multiple of it.
    tuner
        How the step size is set: ``"deflection"``, or ``"energy_variance"``, the paper's
        tuner [1]_, started at the target deflection and frozen at the warmup's end.
        The latter has no target: the step size drifts, for energy errors of a Gamma law
        down by a factor of about two in 1000 steps. For comparison.
    dense_limit
        See ``preconditioner``.
    spectrum_limit
        Up to this dimension the eigenvalues of the whitened noise are reported
        for the diagonal and the identity preconditioner too.
    pooled
        Whether several chains share one preconditioner, fitted to the noise of all,
        one step size, L and threshold: see `adapt_ensemble`. For chains in one
        mode; in different modes the noise differs.

    Returns
    -------
    An object with ``run(rng_key, position, num_steps=2000)``, which returns
    ``((state, parameters), info)``. ``smile(logdensity_fn, **parameters)`` is the
    adapted algorithm, ``state`` its state, ``info`` a `SmileAdaptationInfo`.
    ``num_steps`` is the number of minibatch gradients that the warmup takes.
    With a ``minibatch_fn``, ``run`` works under `jax.jit` (with ``num_steps``
    static) and `jax.vmap`.

    Raises
    ------
    ValueError
        For an unknown preconditioner or tuner, a target outside (0, 1], ``pooled`` without
        a ``minibatch_fn``, or a data set in its place. From ``run``: a batch size that is
        odd, fewer steps than 100, a log-density that does not average over its minibatch,
        too few minibatches, or a chain that could not move (not when traced: see ``info``).

    Warns
    -----
    UserWarning
        From ``run``, if the minibatches of an iterable come in epochs.

    References
    ----------
    .. [1] Sommer et al., "Can Microcanonical Langevin Dynamics Leverage
       Mini-Batch Gradient Noise?", arXiv:2602.06500.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> minibatch_fn = blackjax_smile.minibatch_sampler(data, batch_size=50)
    >>> warmup = blackjax_smile.smile_adaptation(
    ...     blackjax_smile.smile, logdensity_fn, minibatch_fn)
    >>> (state, parameters), info = warmup.run(jax.random.key(1), jnp.zeros(2), num_steps=500)
    >>> sorted(parameters)
    ['L', 'energy_threshold', 'inverse_mass_matrix', 'step_size']
    """
    check_algorithm(algorithm)
    options = AdaptationOptions(
        preconditioner,
        target_deflection,
        tuner,
        Pool(CHAIN_AXIS if pooled else None),
        dense_limit,
        spectrum_limit,
    )
    if not (callable(minibatch_fn) or minibatch_fn is None):
        if not isinstance(minibatch_fn, Iterable):
            raise ValueError(
                "minibatch_fn must be a function of a key or an iterable of minibatches, got "
                f"{type(minibatch_fn).__name__}."
            )
        check_no_data_set(minibatch_fn, "pass minibatch_sampler(data, batch_size)")
    if pooled and tuner != "deflection":
        raise ValueError(f"pooled=True needs tuner='deflection', got {tuner!r}.")
    if pooled and not callable(minibatch_fn):
        raise ValueError(
            "pooled=True needs a minibatch_fn, so that the chains can run side by side."
        )
    setting = _Setting(algorithm.init, algorithm.build_kernel, logdensity_fn, options)

    @functools.cache
    def adapt_on_device(schedule: Schedule) -> Callable:
        return jitted(_adapt_on_device, setting, schedule, minibatch_fn, anew=True)

    def run(rng_key: PRNGKey, position: ArrayLikeTree, num_steps: int = 2000):
        check_key(rng_key)
        position = _tree.as_float_tree(position)
        schedule = build_schedule(num_steps)
        check_axis(options.pool.axis)
        if minibatch_fn is None:
            return adapt_full_batch(rng_key, position, checked_scalar(logdensity_fn), num_steps)
        # What is wrong with the position is said before the model is called with it.
        jax.eval_shape(lambda: algorithm.init(position, logdensity_fn, rng_key))
        if callable(minibatch_fn):
            check_random(minibatch_fn, rng_key)
            minibatch = minibatch_fn(jax.random.fold_in(rng_key, 0))
            averages = check_averages(logdensity_fn, position, minibatch)
            results, record = adapt_on_device(schedule)(rng_key, position)
        else:
            minibatches = iter(minibatch_fn)
            first = list(itertools.islice(minibatches, 1))
            averages = jnp.all(
                jnp.asarray([check_averages(logdensity_fn, position, batch) for batch in first])
            )
            minibatches = itertools.chain(first, minibatches)
            results, record = _adapt(
                setting, schedule, rng_key, position, first, run_on_host, minibatches
            )
        info = SmileAdaptationInfo(schedule=schedule, averages=averages, **record._asdict())
        _check_moved(info, results, position)
        return results, info

    return AdaptationAlgorithm(run)


class _Setting(NamedTuple):
    """What is adapted, and how."""

    init: Callable
    build_kernel: Callable
    logdensity_fn: Callable
    options: AdaptationOptions


def _adapt(
    setting: _Setting,
    schedule: Schedule,
    rng_key: PRNGKey,
    position: ArrayTree,
    minibatch: ArrayTree,
    driver: Callable,
    minibatches: Any,
) -> tuple[AdaptationResults, Record]:
    logdensity_fn = setting.logdensity_fn
    adaptation = build_adaptation(
        setting.build_kernel, logdensity_fn, setting.options, position, schedule, minibatch
    )
    init_key, drive_key = jax.random.split(rng_key)
    sampler = setting.init(position, logdensity_fn, init_key)
    state, record = driver(adaptation, schedule, drive_key, sampler, minibatches)
    parameters = {
        "L": record.windows.L[-1],
        "step_size": state.step_size.step_size,
        "inverse_mass_matrix": state.preconditioner,
        "energy_threshold": record.windows.energy_threshold[-1],
    }
    return AdaptationResults(state.sampler, parameters), record


def _adapt_on_device(setting, schedule, minibatch_fn, rng_key, position):
    minibatch = jax.eval_shape(minibatch_fn, rng_key)
    return _adapt(setting, schedule, rng_key, position, minibatch, run_on_device, minibatch_fn)


def _check_moved(info: SmileAdaptationInfo, results: AdaptationResults, start: ArrayTree) -> None:
    """Raise if the chain never moved; values under tracing cannot be looked at."""
    step_size = results.parameters["step_size"]
    # Pooled, the step size is known under `jax.vmap`, but the chains are not.
    if _tree.is_traced((results, info)):
        return
    if info.num_finite_probes == 0:
        raise ValueError(
            "The log-density or its gradient was not finite at the initial position, on any of "
            f"{info.schedule.num_probes} minibatches. Check the model there "
            "(logdensity_fn(position, minibatch)), or start elsewhere."
        )
    unmoved = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), start, results.state.position)
    stuck = info.schedule.is_stuck(info.windows.num_rejected[-1])
    if all(jax.tree.leaves(unmoved)) or stuck or not jnp.isfinite(step_size):
        raise ValueError(
            "The adaptation failed, the chain did not move: the log-density or its gradient was "
            "not finite next to the initial position or on most minibatches (rows with missing "
            "values?), or does not depend on the position (rejections per window: "
            f"{info.windows.num_rejected.tolist()} of {list(info.schedule.windows)})."
        )
