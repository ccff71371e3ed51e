r"""How freely parameters may move whose gradient has no noise.

A map that whitens gradient noise says nothing of parameters that no row of the data
touches, as the mean and the scale of a hierarchy: their noise is the floor's alone. Where
their own part of the density is steep, the floor lets them move so freely that it is
stiff in whitened coordinates, and the step, set by the gradient as a whole, too long for them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import ArrayTree

from blackjax_smile import _tree
from blackjax_smile.minibatch_gradient import SplitGradient

__all__ = ["GradientSquares", "init_squares", "restraint", "squared_norms", "update_squares"]

#: Noise below this share of the squared gradient is round-off.
NEGLIGIBLE_NOISE = 1e-8

#: A parameter without noise has, whitened, this share of what squared gradient others have.
NOISELESS_SHARE = 0.1


class GradientSquares(NamedTuple):
    """Squares of a window's gradients, summed over its steps: trees of scalars, one per leaf.

    gradient, whitened, noise
        Of the gradient, of the same whitened, and of a draw of the noise in it.
    """

    gradient: ArrayTree
    whitened: ArrayTree
    noise: ArrayTree


def squared_norms(tree: ArrayTree) -> ArrayTree:
    """Return the squared norm of each leaf."""
    return jax.tree.map(lambda x: jnp.sum(x.astype(_tree.accumulation_dtype(x)) ** 2), tree)


def init_squares(like: ArrayTree) -> GradientSquares:
    """Return empty sums for gradients in the shapes of ``like``."""
    zeros = jax.tree.map(jnp.zeros_like, squared_norms(like))
    return GradientSquares(zeros, zeros, zeros)


def update_squares(
    squares: GradientSquares, gradient: SplitGradient, whitened: ArrayTree
) -> GradientSquares:
    """Add one step's gradient, of which ``whitened`` has the squared norms after whitening."""
    draw = jax.tree.map(lambda n: n[0], gradient.noise)
    new = GradientSquares(squared_norms(gradient.mean), whitened, squared_norms(draw))
    return jax.tree.map(jnp.add, squares, new)


def restraint(squares: GradientSquares, stretch: ArrayTree, like: ArrayTree) -> ArrayTree:
    r"""Return how much less a new map is to move each leaf, a tree of scalars up to 1.

    In the stationary law the mean square of a gradient's component, its noise left out, is the
    mean curvature along it. A leaf without noise, of mean square :math:`s` per parameter
    as the new map whitens it, is moved by :math:`c` less, so that

    .. math:: c^2 s \le \tfrac{1}{10} q ,

    with :math:`q` that of all others, noise included.

    Parameters
    ----------
    squares
        Of the window.
    stretch
        By what the new map makes the squared norm of each leaf larger than the old one did.
    like
        A tree in the shapes of the gradient.
    """
    noiseless = jax.tree.map(
        lambda square, noise: (noise <= NEGLIGIBLE_NOISE * square) & (square > 0),
        squares.gradient,
        squares.noise,
    )
    whitened = jax.tree.map(jnp.multiply, squares.whitened, stretch)
    others = jax.tree.map(lambda f, square: jnp.where(f, 0, square), noiseless, whitened)
    num_others = jax.tree.map(lambda f, x: jnp.where(f, 0, x.size), noiseless, like)
    q = sum(jax.tree.leaves(others)) / sum(jax.tree.leaves(num_others))

    def scale(is_noiseless, square, x):
        c = jnp.sqrt(NOISELESS_SHARE * q * x.size / square)
        known = is_noiseless & jnp.isfinite(c) & (c > 0)
        return jnp.where(known, jnp.minimum(c, 1), 1).astype(square.dtype)

    return jax.tree.map(scale, noiseless, whitened, like)
