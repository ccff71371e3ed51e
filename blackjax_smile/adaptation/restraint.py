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

__all__ = ["GradientSquares", "init_squares", "restraint", "update_squares"]

#: Noise below this share of the squared gradient is round-off.
NEGLIGIBLE_NOISE = 1e-8

#: A parameter without noise has, whitened, this share of what squared gradient others have.
NOISELESS_SHARE = 0.1


class GradientSquares(NamedTuple):
    r"""Squares of a window's gradients, summed over its steps.

    count
        Number of steps.
    gradient, noise
        Trees of scalars: of the gradient's leaves and of a draw of the noise in them,
        summed over their elements.
    whitened
        :math:`|\tilde g|^2`, of the whole tree.
    """

    count: Array
    gradient: ArrayTree
    noise: ArrayTree
    whitened: Array


def init_squares(like: ArrayTree) -> GradientSquares:
    """Return empty sums for gradients in the shapes of ``like``."""
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), like)
    zero = jnp.zeros((), _tree.scalar_dtype(like))
    return GradientSquares(zero, zeros, zeros, zero)


def update_squares(
    squares: GradientSquares, gradient: SplitGradient, whitened_norm: Array
) -> GradientSquares:
    """Add one step's gradient."""

    def add(total, x):
        return total + jnp.sum(x.astype(total.dtype) ** 2)

    return GradientSquares(
        count=squares.count + 1,
        gradient=jax.tree.map(add, squares.gradient, gradient.mean),
        noise=jax.tree.map(lambda total, n: add(total, n[0]), squares.noise, gradient.noise),
        whitened=squares.whitened + whitened_norm**2,
    )


def restraint(
    squares: GradientSquares, grad: ArrayTree, old: ArrayTree, new: ArrayTree
) -> ArrayTree:
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
    grad, old, new
        A gradient, as it is, as whitened by the map of the window, and by the new one.
    """
    leaves = jax.tree.leaves
    raw, before, after = ([_norm2(x) for x in leaves(tree)] for tree in (grad, old, new))
    noiseless = [
        (noise <= NEGLIGIBLE_NOISE * square) & (square > 0) & (norm2 > 0)
        for square, noise, norm2 in zip(
            leaves(squares.gradient), leaves(squares.noise), raw, strict=True
        )
    ]

    def whitened_squares(norms2):
        """Of the leaves without noise, whose parameters a map scales alike."""
        return [
            jnp.where(is_noiseless, square * white / jnp.where(norm2 > 0, norm2, 1), 0)
            for is_noiseless, square, white, norm2 in zip(
                noiseless, leaves(squares.gradient), norms2, raw, strict=True
            )
        ]

    def of_others(values):
        return sum(jnp.where(f, 0, value) for f, value in zip(noiseless, values, strict=True))

    sizes = [x.size for x in leaves(grad)]
    growth = of_others(after) / of_others(before)
    others = squares.whitened - sum(whitened_squares(before))
    q = growth * others / of_others(sizes)

    def scale(square, size, like):
        c = jnp.sqrt(NOISELESS_SHARE * q * size / square)
        return jnp.where(jnp.isfinite(c) & (c > 0), jnp.minimum(c, 1), 1).astype(like.dtype)

    scales = map(scale, whitened_squares(after), sizes, leaves(grad))
    return jax.tree.unflatten(jax.tree.structure(grad), list(scales))


def _norm2(x: Array) -> Array:
    return jnp.sum(x.astype(_tree.accumulation_dtype(x)) ** 2)
