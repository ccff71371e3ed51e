r"""Warm start of an ensemble: members trained by any optax optimizer, with early stopping."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey

from blackjax_smile import _tree
from blackjax_smile._checks import positive_integer
from blackjax_smile._jitted import jitted
from blackjax_smile.minibatch import check_minibatch_fn
from blackjax_smile.minibatch_gradient import check_arguments

__all__ = ["TrainedEnsemble", "train_ensemble"]


class TrainedEnsemble(NamedTuple):
    """Trained members; every leaf leads with the axis of the members.

    positions
        Parameters at each member's best evaluation, stacked; without a
        ``validation_fn`` the last ones.
    losses
        Loss at each evaluation, shape ``(members, evaluations)``; NaN after a
        member has stopped.
    num_steps
        Number of steps after which each member stopped.
    best_step
        Number of steps after which each member was best; 0 if it never was.
    is_finite
        Whether a member has finite parameters of a finite loss. Leave the others
        out: ``jax.tree.map(lambda x: x[is_finite], positions)``.
    """

    positions: ArrayTree
    losses: Array
    num_steps: Array
    best_step: Array
    is_finite: Array


class _Setting(NamedTuple):
    """What is static in the training; equal settings share one compilation."""

    init_fn: Callable
    logdensity_fn: Callable
    minibatch_fn: Callable
    optimizer: Any
    validation_fn: Callable | None
    data_size: int
    num_evaluations: int
    evaluation_interval: int
    patience: int


class _Member(NamedTuple):
    """A member during training."""

    position: ArrayTree
    optimizer_state: Any
    best: ArrayTree
    best_loss: Array
    best_step: Array
    num_evaluations: Array
    num_not_better: Array
    losses: Array


def train_ensemble(
    rng_key: PRNGKey,
    init_fn: Callable[[PRNGKey], ArrayLikeTree],
    logdensity_fn: Callable[[ArrayTree, Any], Array],
    minibatch_fn: Callable[[PRNGKey], ArrayTree],
    optimizer: Any,
    *,
    data_size: int,
    num_members: int = 4,
    num_steps: int = 10_000,
    validation_fn: Callable[[ArrayTree], Array] | None = None,
    evaluation_interval: int = 100,
    patience: int = 10,
) -> TrainedEnsemble:
    r"""Train the members of an ensemble from independent starts, as starts of chains.

    Each member minimises the negative log-density per observation,

    .. math:: -\frac{1}{N} \log p(x, \mathrm{minibatch}),

    with :math:`N` the ``data_size``: a mean loss, whose size does not depend on
    the size of the data set, so that learning rates, gradient clipping and weight
    decay mean what they mean elsewhere (SGD on the log-density itself, a sum over
    :math:`N` observations, would need a learning rate :math:`N` times smaller).
    The prior is part of the log-density; an optimizer's weight decay comes on top.

    All members run side by side (`jax.vmap`) in one compiled loop on the device. A
    member that has stopped does not change any more; the loop ends when all have.

    Parameters
    ----------
    rng_key
        Key of the starts and of the minibatches, which differ between members.
    init_fn
        ``rng_key -> position``: the start of a member.
    logdensity_fn
        ``(position, minibatch) -> logdensity``, scaled to the full data set.
    minibatch_fn
        ``rng_key -> minibatch``.
    optimizer
        An `optax.GradientTransformation`.
    data_size
        Number of observations, N.
    num_members
        Number of members.
    num_steps
        Largest number of steps of each member; rounded up to a multiple of
        ``evaluation_interval``.
    validation_fn
        ``position -> loss``, evaluated every ``evaluation_interval`` steps; the
        parameters with the lowest are kept. None: all steps are taken, the last
        parameters kept, and the history holds the mean loss of the minibatches.
    evaluation_interval
        Number of steps between evaluations.
    patience
        A member stops after this many evaluations in a row without a new lowest
        loss. A member whose parameters are no longer finite stops at once.

    Returns
    -------
    A `TrainedEnsemble`.

    Raises
    ------
    ValueError
        If a number is not positive, a function is none, or a start has a leaf that is not
        floating.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, blackjax_smile
    >>> data = 3.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> train, validation = data[:800], data[800:]
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 400 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> trained = blackjax_smile.train_ensemble(
    ...     jax.random.key(1),
    ...     lambda key: jax.random.normal(key, (2,)),
    ...     logdensity_fn,
    ...     blackjax_smile.minibatch_sampler(train, batch_size=32),
    ...     optax.adam(0.05),
    ...     data_size=800,
    ...     num_members=3,
    ...     validation_fn=lambda x: jnp.mean((validation - x) ** 2),
    ... )
    >>> trained.positions.shape, bool(jnp.all(jnp.abs(trained.positions - 3) < 0.3))
    ((3, 2), True)
    """
    numbers = {
        "data_size": data_size,
        "num_members": num_members,
        "num_steps": num_steps,
        "evaluation_interval": evaluation_interval,
        "patience": patience,
    }
    for name, number in numbers.items():
        positive_integer(name, number)
    if not callable(init_fn):
        raise ValueError(f"init_fn must be a function of a key, got {type(init_fn).__name__}.")
    check_minibatch_fn(minibatch_fn)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must be an optax one, like optax.adam(0.01), got {optimizer}.")
    check_arguments(logdensity_fn, has_minibatch=True)
    setting = _Setting(
        init_fn,
        logdensity_fn,
        minibatch_fn,
        optimizer,
        validation_fn,
        data_size,
        -(-num_steps // evaluation_interval),
        evaluation_interval,
        patience,
    )
    keys = jax.random.split(rng_key, num_members)
    return jitted(_train_members, setting)(keys)


def _train_members(setting: _Setting, keys: PRNGKey) -> TrainedEnsemble:
    # Under vmap, a while loop runs until all members are done and keeps those that
    # are as they were: just what stopping each by itself means.
    members = jax.vmap(functools.partial(_train, setting))(keys)
    is_finite = jax.vmap(_tree.all_finite)(members.best) & jnp.isfinite(members.best_loss)
    return TrainedEnsemble(
        positions=members.best,
        losses=members.losses,
        num_steps=members.num_evaluations * setting.evaluation_interval,
        best_step=members.best_step,
        is_finite=is_finite,
    )


def _train(setting: _Setting, rng_key: PRNGKey) -> _Member:
    """Train one member."""
    init_key, step_key = jax.random.split(rng_key)
    position = _tree.as_float_tree(setting.init_fn(init_key))
    dtype = _tree.scalar_dtype(position)

    def loss_fn(position: ArrayTree, minibatch: ArrayTree) -> Array:
        return -setting.logdensity_fn(position, minibatch).astype(dtype) / setting.data_size

    def interval(member: _Member) -> _Member:
        first = member.num_evaluations * setting.evaluation_interval

        def step(i, carry):
            position, optimizer_state, loss = carry
            minibatch = setting.minibatch_fn(jax.random.fold_in(step_key, first + i))
            value, grad = jax.value_and_grad(loss_fn)(position, minibatch)
            updates, optimizer_state = setting.optimizer.update(grad, optimizer_state, position)
            position = optax.apply_updates(position, updates)
            return position, optimizer_state, loss + value

        start = (member.position, member.optimizer_state, jnp.zeros((), dtype))
        position, optimizer_state, loss = jax.lax.fori_loop(
            0, setting.evaluation_interval, step, start
        )
        if setting.validation_fn is None:
            loss = loss / setting.evaluation_interval
            is_better = jnp.ones((), bool)
        else:
            loss = jnp.asarray(setting.validation_fn(position)).astype(dtype)
            is_better = loss < member.best_loss  # false for NaN
        count = member.num_evaluations + 1
        return _Member(
            position=position,
            optimizer_state=optimizer_state,
            best=_tree.select(is_better, position, member.best),
            best_loss=jnp.where(is_better, loss, member.best_loss),
            best_step=jnp.where(is_better, count * setting.evaluation_interval, member.best_step),
            num_evaluations=count,
            num_not_better=jnp.where(is_better, 0, member.num_not_better + 1),
            losses=member.losses.at[member.num_evaluations].set(loss),
        )

    def goes_on(member: _Member) -> Array:
        return (
            (member.num_evaluations < setting.num_evaluations)
            & (member.num_not_better < setting.patience)
            & _tree.all_finite(member.position)
        )

    zero = jnp.zeros((), jnp.int32)
    start = _Member(
        position=position,
        optimizer_state=setting.optimizer.init(position),
        best=position,
        best_loss=jnp.full((), jnp.inf, dtype),
        best_step=zero,
        num_evaluations=zero,
        num_not_better=zero,
        losses=jnp.full(setting.num_evaluations, jnp.nan, dtype),
    )
    return jax.lax.while_loop(goes_on, interval, start)
