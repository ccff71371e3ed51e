"""Convergence of predictions: R-hat and ESS in function space.

The weights of a neural network can be permuted and rescaled without any change of
the function, so R-hat of the weights says nothing about it; predictions are
comparable between draws and chains.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayLikeTree, ArrayTree

from blackjax_smile import _tree
from blackjax_smile._streaming import Blocks, by_rows, flat_draws

__all__ = ["PredictionDiagnostics", "prediction_diagnostics"]


class PredictionDiagnostics(NamedTuple):
    """Convergence of predictions; every field leads with the rows, a tree if the prediction is one.

    rhat
        Rank-normalised split R-hat over all chains, the between-chain view.
    rhat_within
        The same of each chain by itself (its halves against each other), shape
        ``(rows, ..., chains)``, the within-chain view.
    ess
        Effective sample size of the mean over all chains (`blackjax.ess`: neither split nor
        rank-normalised, so other than ArviZ's bulk ESS where chains differ or tails are heavy).
    ess_within
        The same of each chain by itself, shape ``(rows, ..., chains)``.
    """

    rhat: ArrayTree
    rhat_within: ArrayTree
    ess: ArrayTree
    ess_within: ArrayTree


def prediction_diagnostics(
    fn: Callable[[ArrayTree, Any], ArrayTree],
    positions: ArrayLikeTree,
    data: ArrayLikeTree,
    *,
    batch_size: int = 64,
    draw_batch_size: int = 16,
) -> PredictionDiagnostics:
    """Return R-hat and effective sample size of predictions, in function space.

    How to read the two views. Chains of a neural network mostly stay in the mode
    that they started in. Then each chain by itself can have converged
    (``rhat_within`` near 1, a good ``ess_within``) while the chains differ
    (``rhat`` well above 1, ``ess`` about the number of chains): the ensemble is
    then a mixture of local posteriors, weighted equally rather than by their
    mass, and the number of chains, not of draws, limits its precision. A large
    ``rhat_within`` says something else: the chain itself still drifts.

    Parameters
    ----------
    fn
        ``(position, row) -> prediction``, a scalar, an array of any shape or a tree of some.
    positions
        Draws, leaves of leading axes ``(chain, draw)``, at least 8 draws.
    data
        A pytree of arrays with one leading axis, the rows.
    batch_size, draw_batch_size
        Numbers of rows and of draws that are evaluated at once. All draws of
        ``batch_size`` rows are held in memory.

    Returns
    -------
    `PredictionDiagnostics`. With one chain, ``rhat`` is that of its halves. NaN for a
    prediction that is the same in all draws, as a saturated probability is: summarise over
    rows by `jax.numpy.nanmedian`.

    Raises
    ------
    ValueError
        With fewer than 8 draws, or where the leading axes of a tree differ.

    References
    ----------
    .. [1] Vehtari et al., "Rank-normalization, folding, and localization: an
       improved R-hat", Bayesian Analysis 16, 2021.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from blackjax_smile.function_space import prediction_diagnostics
    >>> modes = jnp.array([-3.0, 3.0])[:, None]  # two chains, a mode each
    >>> draws = modes + jax.random.normal(jax.random.key(0), (2, 500))
    >>> found = prediction_diagnostics(lambda slope, x: slope * x, draws, jnp.ones(1))
    >>> bool(found.rhat[0] > 1.5), bool(jnp.all(found.rhat_within < 1.02))
    (True, True)
    """
    draws, (num_chains, num_draws) = flat_draws(positions)
    if num_draws < 8:
        raise ValueError(f"R-hat needs at least 8 draws in a chain, got {num_draws}.")
    blocks = Blocks.of(batch_size, draw_batch_size)
    return by_rows(fn, _Diagnose(num_chains, num_draws), draws, data, blocks)


@dataclasses.dataclass(frozen=True)
class _Diagnose:
    """R-hat and ESS over the draws of a block of rows."""

    num_chains: int
    num_draws: int

    def __call__(self, values: ArrayTree) -> PredictionDiagnostics:
        leaves, treedef = jax.tree.flatten(values)
        fields = zip(*map(self._of_leaf, leaves), strict=True)
        return PredictionDiagnostics(*(jax.tree.unflatten(treedef, field) for field in fields))

    def _of_leaf(self, values: Array) -> PredictionDiagnostics:
        values = values.astype(_tree.accumulation_dtype(values))
        values = values.reshape(self.num_chains, self.num_draws, *values.shape[1:])

        # A quantity at a time: BlackJAX squeezes axes of length one away.
        def of_all(statistic):
            return jax.vmap(_unless_constant(statistic), in_axes=2)

        def of_each(statistic):
            of_chain = jax.vmap(lambda chain: _unless_constant(statistic)(chain[None]))
            return jax.vmap(of_chain, in_axes=2)

        shape = values.shape[2:]
        flat = values.reshape(self.num_chains, self.num_draws, -1)
        # BlackJAX broadcasts between ranks, which users may have forbidden.
        with jax.numpy_rank_promotion("allow"):
            rhat, ess = of_all(blackjax.rhat)(flat), of_all(blackjax.ess)(flat)
            within = of_each(blackjax.rhat)(flat), of_each(blackjax.ess)(flat)
        rhat_within, ess_within = (x.reshape(*shape, self.num_chains) for x in within)
        return PredictionDiagnostics(
            rhat.reshape(shape), rhat_within, ess.reshape(shape), ess_within
        )


def _unless_constant(statistic):
    """Return a statistic that is NaN where BlackJAX's is what round-off makes of 0 / 0."""

    def of_chains(chains):
        varies = jnp.any(chains != chains[:1, :1])
        return jnp.where(varies, statistic(chains), jnp.nan)

    return of_chains
