r"""How freely parameters may move whose gradient has no noise.

A map that whitens gradient noise says nothing of parameters that no row of the data
touches, as the mean and the scale of a hierarchy: their noise is the floor's alone. Where
their own part of the density is steep, the floor lets them move so freely that it is
stiff in whitened coordinates, and the step, set by the gradient as a whole, too long for them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree
from blackjax_smile.minibatch_gradient import SplitGradient
from blackjax_smile.preconditioners.base import Preconditioner

__all__ = ["GradientSquares", "init_squares", "restraint", "squared_norms", "update_squares"]

#: Noise below this share of the squared gradient is round-off.
NEGLIGIBLE_NOISE = 1e-8

#: A parameter without noise has, whitened, this share of what squared gradient others have.
NOISELESS_SHARE = 0.1


class GradientSquares(NamedTuple):
    """Squares of a window's gradients, summed over its steps.

    gradient
        Of the gradient: a tree of vectors where the numbers of a leaf are looked at one by one,
        of scalars elsewhere.
    whitened, noise
        Of the whitened gradient, and of a draw of the noise in it: trees of scalars.
    """

    gradient: ArrayTree
    whitened: ArrayTree
    noise: ArrayTree


def squared_norms(tree: ArrayTree) -> ArrayTree:
    """Return the squared norm of each leaf."""
    return jax.tree.map(lambda x: jnp.sum(x.astype(_tree.accumulation_dtype(x)) ** 2), tree)


def init_squares(like: ArrayTree, vector_limit: int = 0) -> GradientSquares:
    """Return empty sums for gradients in the shapes of ``like``.

    Vectors of up to ``vector_limit`` numbers are looked at number by number.
    """
    zeros = jax.tree.map(jnp.zeros_like, squared_norms(like))

    def by_number(x: Array, zero: Array) -> Array:
        return jnp.zeros(x.shape, zero.dtype) if x.ndim == 1 and x.size <= vector_limit else zero

    return GradientSquares(jax.tree.map(by_number, like, zeros), zeros, zeros)


def update_squares(
    squares: GradientSquares, gradient: SplitGradient, whitened: ArrayTree
) -> GradientSquares:
    """Add one step's gradient, of which ``whitened`` has the squared norms after whitening."""

    def square(total: Array, x: Array) -> Array:
        square = x.astype(total.dtype) ** 2
        return square if total.ndim else jnp.sum(square)

    draw = jax.tree.map(lambda n: n[0], gradient.noise)
    own = jax.tree.map(square, squares.gradient, gradient.mean)
    return jax.tree.map(jnp.add, squares, GradientSquares(own, whitened, squared_norms(draw)))


def restraint(
    squares: GradientSquares, stretch: ArrayTree, preconditioner: Preconditioner, like: ArrayTree
) -> ArrayTree:
    r"""Return how much less a new map is to move leaves without noise, a tree of factors up to 1.

    In the stationary law the mean square of a gradient's component, its noise left out, is the
    mean curvature along it. What has no noise, of mean square :math:`s` as the new map whitens it,
    is moved by :math:`c` less, so that

    .. math:: c^2 s \le \tfrac{1}{10} q ,

    with :math:`q` the mean square of all parameters that have noise. The numbers of some vectors
    are looked at one by one, as they may be in different units, all other leaves by their means.

    Parameters
    ----------
    squares
        Of the window.
    stretch
        By what the new map makes the squared norm of each leaf larger than the old one did.
    preconditioner
        The new map.
    like
        A tree in the shapes of the gradient.

    Returns
    -------
    Tree of :math:`c` in the shapes of ``squares.gradient``.
    """
    noiseless = jax.tree.map(
        lambda square, noise: (noise <= NEGLIGIBLE_NOISE * square) & (square > 0),
        jax.tree.map(jnp.sum, squares.gradient),
        squares.noise,
    )
    whitened = jax.tree.map(jnp.multiply, squares.whitened, stretch)
    others = jax.tree.map(lambda f, square: jnp.where(f, 0, square), noiseless, whitened)
    num_others = jax.tree.map(lambda f, x: jnp.where(f, 0, x.size), noiseless, like)
    q = sum(jax.tree.leaves(others)) / sum(jax.tree.leaves(num_others))
    # Without noise the floor alone is whitened, a diagonal: sums of rows are its entries.
    freedom = preconditioner.to_position(preconditioner.whiten(jax.tree.map(jnp.ones_like, like)))

    def scale(is_noiseless, square, norm2, freedom):
        mean = square * freedom if square.ndim else norm2 / freedom.size
        c = jnp.sqrt(NOISELESS_SHARE * q / mean)
        known = is_noiseless & jnp.isfinite(c) & (c > 0)
        return jnp.where(known, jnp.minimum(c, 1), 1).astype(square.dtype)

    return jax.tree.map(scale, noiseless, squares.gradient, whitened, freedom)
