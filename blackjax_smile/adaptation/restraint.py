r"""How freely parameters may move whose gradient has no noise.

A map that whitens gradient noise says nothing of parameters that no row of the data
touches, as the mean and the scale of a hierarchy: their noise is the floor's alone. Where
their own part of the density is steep, the floor lets them move so freely that it is
stiff in whitened coordinates, and the step, set by the gradient as a whole, too long for them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree
from blackjax.util import pytree_size

from blackjax_smile import _tree
from blackjax_smile.minibatch_gradient import SplitGradient
from blackjax_smile.preconditioners.base import PreconditionerEstimator

__all__ = [
    "GradientMoments",
    "init_moments",
    "initial_restraint",
    "products",
    "restrain",
    "restraint",
    "update_moments",
]

#: Noise below this share of the squared gradient is round-off.
NEGLIGIBLE_NOISE = 1e-8

#: A parameter without noise has, whitened, this share of what squared gradient others have.
NOISELESS_SHARE = 0.1

#: How much less what has no noise is moved until a window has been seen.
HELD = 0.01

#: What a window's secants say of a curvature, plus this many standard errors.
STANDARD_ERRORS = 2.0


class GradientMoments(NamedTuple):
    r"""Sums over a window's steps, of whitened gradients unless it is said otherwise.

    Trees with one entry for a leaf, or one for each number of a vector that is looked at number
    by number.

    count
        Number of steps.
    raw, noise
        Squares of the gradient as it is, and of a draw of the noise in it, one for each leaf.
    square
        Squares.
    secant, secant_square
        Minus the products of changes from step to step and displacements, and their squares.
    displacement
        Squares of the displacements.
    last, is_known
        No sums: the products of the last gradient and the momentum after it, and 1 if that was in
        this window and its step accepted, else 0.
    """

    count: Array
    raw: ArrayTree
    noise: ArrayTree
    square: ArrayTree
    secant: ArrayTree
    secant_square: ArrayTree
    displacement: ArrayTree
    last: ArrayTree
    is_known: Array


def products(a: ArrayTree, b: ArrayTree, vector_limit: int = 0) -> ArrayTree:
    """Return the scalar products of two trees' leaves; of small vectors those of all numbers."""

    def product(x: Array, y: Array) -> Array:
        dtype = _tree.accumulation_dtype(x)
        xy = x.astype(dtype) * y.astype(dtype)
        return xy if x.ndim == 1 and 0 < x.size <= vector_limit else jnp.sum(xy)

    return jax.tree.map(product, a, b)


def init_moments(like: ArrayTree, vector_limit: int) -> GradientMoments:
    """Return empty sums for gradients in the shapes of ``like``."""
    by_leaf, entries = (
        jax.tree.map(jnp.zeros_like, products(like, like, limit)) for limit in (0, vector_limit)
    )
    zero = jnp.zeros((), _tree.scalar_dtype(like))
    return GradientMoments(zero, by_leaf, by_leaf, *(entries,) * 5, zero)


def update_moments(
    moments: GradientMoments,
    gradient: SplitGradient,
    whitened: ArrayTree,
    momenta: tuple[ArrayTree, ArrayTree],
    step_size: Array,
    accepted: Array,
    vector_limit: int,
) -> GradientMoments:
    """Add a step if it was accepted: its gradient, the same whitened, the momenta at its ends.

    Gradients are taken in the middle of a step, so from one to the next the chain moves along the
    momentum between the two steps, unless one was rejected.
    """
    before, after = momenta
    draw = jax.tree.map(lambda n: n[0], gradient.noise)

    moved = jnp.where(moments.is_known > 0, step_size, 0)
    change = jax.tree.map(jnp.subtract, moments.last, products(whitened, before, vector_limit))
    secant = jax.tree.map(lambda x: x * moved.astype(x.dtype), change)
    norm2 = products(before, before, vector_limit)
    new = GradientMoments(
        count=jnp.ones_like(moments.count),
        raw=products(gradient.mean, gradient.mean),
        noise=products(draw, draw),
        square=products(whitened, whitened, vector_limit),
        secant=secant,
        secant_square=jax.tree.map(jnp.square, secant),
        displacement=jax.tree.map(lambda x: x * moved.astype(x.dtype) ** 2, norm2),
        last=moments.last,
        is_known=moments.is_known,
    )
    sums = _tree.select(accepted, jax.tree.map(jnp.add, moments, new), moments)
    last = _tree.select(accepted, products(whitened, after, vector_limit), moments.last)
    return sums._replace(last=last, is_known=accepted.astype(moments.is_known.dtype))


def initial_restraint(variance: ArrayTree, typical: Array, grad: ArrayTree) -> ArrayTree:
    """Return how much less parameters are to move until a window has been seen.

    The gradient of what has no noise follows from the other parameters, which are still where they
    started: effects that all start at zero say that their scale is zero, and once it is, the way
    back is long. So where it is more than the typical noise, it waits for what has noise.

    Parameters
    ----------
    variance
        Of the gradient's noise at the start.
    typical
        Variance of most parameters.
    grad
        A gradient there.

    Returns
    -------
    Tree of factors, for the numbers of a vector one by one, for other leaves one.
    """

    def factor(square: Array, variance: Array) -> Array:
        num = variance.size // square.size
        noise = variance if square.ndim else jnp.sum(variance)
        held = _is_noiseless(square, noise) & (square > num * typical.astype(square.dtype))
        return jnp.where(held, HELD, 1).astype(square.dtype)

    return jax.tree.map(factor, products(grad, grad, pytree_size(grad)), variance)


def restraint(
    moments: GradientMoments,
    squares: tuple[ArrayTree, ArrayTree],
    with_secants: Array,
    memory: Array,
    like: ArrayTree,
) -> ArrayTree:
    r"""Return how much less a new map is to move leaves without noise, a tree of factors up to 1.

    What has no noise, of curvature :math:`s` as the new map whitens it, is moved by :math:`c` less,
    so that

    .. math:: c^2 s \le \tfrac{1}{10} q ,

    with :math:`q` that of all parameters that have noise, noise included. Both are mean squares of
    gradients, :math:`E[\tilde g^2]`, which are larger on the way to the posterior, or by secants,

    .. math:: s = -\frac{E[\Delta \tilde g\, \Delta y]}{E[\Delta y^2]} + 2 \sigma ,

    with :math:`\sigma` the standard error, from what other parameters change a gradient by. Of the
    two the larger :math:`c` is taken.

    Parameters
    ----------
    moments
        Of the window.
    squares
        Of one gradient, as the new map whitens it and as the old one did.
    with_secants
        Whether secants may say that a parameter need not be moved less.
    memory
        For how many steps the momentum is remembered.
    like
        A tree in the shapes of the gradient.

    Returns
    -------
    Tree of :math:`c` in the shapes of ``moments.square``.
    """
    noiseless = jax.tree.map(_is_noiseless, moments.raw, moments.noise)

    def of_others(tree: ArrayTree) -> Array:
        kept = jax.tree.map(lambda f, x: jnp.where(f, 0, jnp.sum(x)), noiseless, tree)
        return _tree.reduce_scalars(jnp.sum, jax.tree.leaves(kept))

    def stretched(sums: Array, new: Array, old: Array) -> Array:
        return sums * new / _or_one(old)

    # The whitened numbers of a vector with noise are of other directions than they were.
    new, old = (jax.tree.map(jnp.sum, tree) for tree in squares)
    square, secant = (
        jax.tree.map(stretched, jax.tree.map(jnp.sum, sums), new, old)
        for sums in (moments.square, moments.secant)
    )
    num_gradients = jax.tree.map(lambda x: moments.count * x.size, like)
    q = of_others(square) / of_others(num_gradients)
    q_secant = of_others(secant) / _or_one(of_others(moments.displacement))

    def scale(is_noiseless, num, new, old, square, secant, secant_square, displacement):
        mean = stretched(square, new, old) * square.size / num.astype(square.dtype)
        error = jnp.sqrt(memory.astype(secant.dtype) * secant_square)
        bound = stretched(secant + STANDARD_ERRORS * error, new, old) / _or_one(displacement)
        by_secants = jnp.where(with_secants & (bound > 0), q_secant / _or_one(bound), 0)
        ratio = jnp.maximum(q / mean, by_secants)
        c = jnp.sqrt(NOISELESS_SHARE * ratio)
        known = is_noiseless & jnp.isfinite(c) & (c > 0)
        return jnp.where(known, jnp.minimum(c, 1), 1).astype(square.dtype)

    return jax.tree.map(
        scale,
        *(noiseless, num_gradients, *squares),
        *(moments.square, moments.secant, moments.secant_square, moments.displacement),
    )


def _is_noiseless(square: Array, noise: Array) -> Array:
    return (noise <= NEGLIGIBLE_NOISE * square) & (square > 0)


def _or_one(x: Array) -> Array:
    """Return the number to divide by where it is positive."""
    return jnp.where(x > 0, x, 1)


def restrain(
    estimator: PreconditionerEstimator, preconditioner: Any, scale: ArrayTree, like: ArrayTree
) -> Any:
    """Return the map that moves a position by ``scale`` less, of which a leaf may be one number."""
    least = _tree.reduce_scalars(jnp.min, list(map(jnp.min, jax.tree.leaves(scale))))
    # A branch, which takes one copy of the parameters less.
    return jax.lax.cond(
        least < 1,
        estimator.restrain,
        lambda preconditioner, scale: preconditioner,
        preconditioner,
        jax.tree.map(lambda c, x: jnp.broadcast_to(c.astype(x.dtype), x.shape), scale, like),
    )
