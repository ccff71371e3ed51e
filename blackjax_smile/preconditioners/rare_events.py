r"""Parameters that only some of the rows inform, and what a window may have missed of their noise.

The effect of a group, a row of an embedding, the coefficient of a rare category: the gradient noise
of such a parameter is exactly zero, but for the minibatches that hold one of its rows. Where a
window has missed these events by chance, only the floor would hold the parameter,
and a map that lets it move a hundred times as freely as others throws it far away.
So the floor is to hold what some more events would have added.
"""

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile.preconditioners.variances import geometric_mean, has_noise

__all__ = ["missed_variance", "num_present"]

#: The number of events that are added. The variance of the whitened noise of a parameter with
#: :math:`k` events, of which :math:`\kappa` were expected, is about
#: :math:`(\kappa + c) / (k + c)`.
NUM_EVENTS = 10

#: As many are added where their size is that of the parameter's own: noise depends on where the
#: chain is, and the size of few events says less than that of all others'.
NUM_OWN_EVENTS = 100

#: A share of absent noise below this is round-off of its sum.
NEGLIGIBLE_SHARE = 1e-3


def num_present(noise: ArrayTree) -> ArrayTree:
    """Return the number of each leaf's parameters of which a draw has any noise."""
    return jax.tree.map(lambda n: jnp.sum((n != 0).astype(jnp.float32)), noise)


def missed_variance(count: Array, variance: ArrayTree, present: ArrayTree) -> ArrayTree:
    r"""Return what events that were not seen may add to the variances, a tree.

    .. math:: e = c (1 - p) \frac{G}{p n}

    with :math:`n` the number of draws, :math:`G` the geometric mean of a leaf's variances that
    are not negligible, and :math:`p` the share of draws in which such a
    parameter had noise, on average: one event adds about :math:`G / p n`. Where every row informs
    every parameter, :math:`p = 1`: what has no noise then never has, and the floor
    need not hold more. Where the events of each parameter are counted, :math:`k_i`, one that has
    seen :math:`c` of them shows what an event of its own adds:
    :math:`e_i = \min(e, 10 c (1 - k_i / n) V_{ii} / k_i)`.

    Parameters
    ----------
    count
        Number of draws.
    variance
        Tree of the variances that the draws have shown.
    present
        Tree of scalars, summed `num_present`, or of the number of draws in which a parameter had
        noise, in its shape; as the leaves of the result.
    """
    count = jnp.maximum(count, 1)

    def missed(v: Array, present: Array) -> Array:
        num_seen = jnp.maximum(jnp.sum(has_noise(v)), 1).astype(v.dtype)
        G = geometric_mean(v)  # 0 where none was seen, and so is e
        events = jnp.maximum(jnp.sum(present), 1) / num_seen  # of a parameter: p n
        absent = 1 - events / count.astype(events.dtype)
        e = NUM_EVENTS * jnp.where(absent > NEGLIGIBLE_SHARE, absent, 0) * G / events
        e = e.astype(v.dtype)
        if present.ndim < v.ndim:
            return e
        k = jnp.maximum(present, 1)
        n = count.astype(k.dtype)
        own = NUM_OWN_EVENTS * (n - k) / n * v / k  # exactly 0 where k = n
        return jnp.where(k >= NUM_EVENTS, jnp.minimum(e, own), e)

    return jax.tree.map(missed, variance, present)
