r"""What a window says of the factors of a Kronecker product: of its noise and its gradients."""

from typing import NamedTuple

import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile.preconditioners.base import CurvatureStep
from blackjax_smile.preconditioners.kronecker_side import Evidence, Side, diagonal_of
from blackjax_smile.preconditioners.matrix_layout import matrix_layout
from blackjax_smile.preconditioners.rare_events import missed_variance

__all__ = [
    "KroneckerMoments",
    "SideMoments",
    "find_evidence",
    "init_kronecker_moments",
    "update_kronecker_gradient",
    "update_kronecker_moments",
]


class SideMoments(NamedTuple):
    r"""Sums over a window, by the rows of a matrix; for the other side, of its transpose.

    whitened
        Sum of :math:`\tilde N \tilde N^T / n` of the whitened noise, shape ``(m, m)``, or its
        diagonal.
    events
        In how many draws of the noise a row had any, shape ``(m,)``.
    squares
        Sum of the squares of a row's gradient, noise and all, shape ``(m,)``.
    """

    whitened: Array
    events: Array
    squares: Array


class KroneckerMoments(NamedTuple):
    """Moments of a window, per matrix of parameters.

    count
        Number of draws of the noise.
    num_gradients
        Number of gradients.
    left, right
        The sums of the rows and those of the columns of every matrix.
    """

    count: Array
    num_gradients: Array
    left: list[SideMoments]
    right: list[SideMoments]


def init_kronecker_moments(
    left: list[Side], right: list[Side], dtype: jnp.dtype
) -> KroneckerMoments:
    """Return empty moments of the noise that the sides whiten."""

    def empty(side: Side) -> SideMoments:
        zero = jnp.zeros_like(side.floor)
        return SideMoments(jnp.zeros_like(side.factor), zero, zero)

    zero = jnp.zeros((), dtype)
    return KroneckerMoments(zero, zero, list(map(empty, left)), list(map(empty, right)))


def update_kronecker_moments(
    moments: KroneckerMoments, noise: ArrayTree, whitened_noise: ArrayTree
) -> KroneckerMoments:
    """Add one draw of the noise."""

    def add(side: SideMoments, noise: Array, whitened: Array) -> SideMoments:
        present = jnp.any(noise != 0, axis=1)
        return side._replace(
            whitened=side.whitened + _gram(whitened, side.whitened),
            events=side.events + present.astype(side.events.dtype),
        )

    # The layout is a function of the tree's names and shapes alone.
    layout = matrix_layout(noise)
    raw, whitened = layout.to_matrices(noise), layout.to_matrices(whitened_noise)
    return moments._replace(
        count=moments.count + 1,
        left=list(map(add, moments.left, raw, whitened)),
        right=list(map(add, moments.right, _transposed(raw), _transposed(whitened))),
    )


def update_kronecker_gradient(
    moments: KroneckerMoments, gradient: ArrayTree, step: CurvatureStep | None
) -> KroneckerMoments:
    """Add the gradient of a step."""
    del step

    def add(side: SideMoments, gradient: Array) -> SideMoments:
        square = jnp.sum(gradient.astype(side.squares.dtype) ** 2, axis=1)
        return side._replace(squares=side.squares + square)

    matrices = matrix_layout(gradient).to_matrices(gradient)
    return moments._replace(
        num_gradients=moments.num_gradients + 1,
        left=list(map(add, moments.left, matrices)),
        right=list(map(add, moments.right, _transposed(matrices))),
    )


def find_evidence(
    moments: KroneckerMoments, left: list[Array], right: list[Array]
) -> list[tuple[Evidence, Evidence]]:
    """Return what a window says of the rows and of the columns of every matrix, pairs.

    Parameters
    ----------
    moments
        Of the window.
    left, right
        The covariances that its noise has between rows and between columns, or their
        diagonals.
    """
    variances = [[jnp.maximum(diagonal_of(s), 0) for s in sides] for sides in (left, right)]

    def of_sides(sides: list[SideMoments], own: list[Array], others: list[Array]):
        missed = missed_variance(moments.count, own, [side.events for side in sides])
        return [
            Evidence(_in_units(side.squares / count.astype(side.squares.dtype), other), e)
            for side, other, e in zip(sides, others, missed, strict=True)
        ]

    count = jnp.maximum(moments.num_gradients, 1)
    of_rows = of_sides(moments.left, *variances)
    return list(zip(of_rows, of_sides(moments.right, *variances[::-1]), strict=True))


def _in_units(square: Array, other: Array) -> Array:
    """Return the square of a row's gradient in units of the other factor, by its diagonal."""
    trace = jnp.sum(other)
    return jnp.where(trace > 0, square / jnp.where(trace > 0, trace, 1), jnp.inf)


def _gram(matrix: Array, like: Array) -> Array:
    r"""Return :math:`X X^T / n`, or its diagonal if ``like`` is one."""
    matrix = matrix.astype(like.dtype)
    if like.ndim == 1:
        return jnp.mean(matrix**2, axis=1)
    return matrix @ matrix.T / matrix.shape[1]


def _transposed(matrices: list[Array]) -> list[Array]:
    return [matrix.T for matrix in matrices]
