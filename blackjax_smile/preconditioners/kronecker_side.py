r"""One factor of a Kronecker product: its floor, its whitening, its two-sided products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array

from blackjax_smile.preconditioners.eigen import eigh
from blackjax_smile.preconditioners.floor import curvature_bound
from blackjax_smile.preconditioners.variances import geometric_mean, has_noise

__all__ = [
    "INITIAL_FLOOR",
    "NO_EVIDENCE",
    "Evidence",
    "Side",
    "diagonal_of",
    "effective_dimension",
    "make_side",
    "new_level",
    "restrain_side",
    "times_left",
    "times_right",
    "unwhiten",
]

#: Floor under a factor at first, as a share of its own diagonal and of the mean of
#: that; and the range in which windows move it.
INITIAL_FLOOR = 0.1
FLOOR_RANGE = (0.0001, 0.3)

#: The floor rises where a window's noise had, along some axis, more than this many
#: times the variance that the last window's fit promised, and falls otherwise; by at
#: most the factors beside it per window.
MAX_SURPRISE = 2.0
MAX_RISE, MAX_FALL = 4.0, 8.0

#: Below this level, which takes a calm window to reach, it falls with the third power of the
#: surprise. The hidden layers of networks stay above.
CALM_LEVEL = 0.07

#: From this level down the floor of a row is bounded by its curvature.
BOUNDED_LEVEL = 0.01

#: Draws that a window must hold, per row of a factor, before the factor's
#: correlations are estimated; a draw of a matrix counts once per other side's
#: effective dimension.
DRAWS_PER_ROW = 2


class Side(NamedTuple):
    r"""One of the two factors of a matrix's noise, :math:`A` (or :math:`B`), floored.

    factor
        :math:`F_A` with :math:`F_A^T (A + D_A) F_A = I`, shape ``(m, m)``; shape
        ``(m,)`` where only a diagonal is kept. Rotated so that
        :math:`F_A^T D_A F_A` is diagonal.
    share
        That diagonal, :math:`c_A`: the floor's share of the whitened variance,
        shape ``(m,)``, between 0 and 1.
    floor
        The diagonal :math:`D_A`, shape ``(m,)``.
    level
        :math:`\lambda_A`, what the floor is in units of the noise, see
        `kronecker_estimator`.
    """

    factor: Array
    share: Array
    floor: Array
    level: Array


class Evidence(NamedTuple):
    """What a window says of the rows of a factor besides their noise, in its units.

    gradient_square
        Mean square of a row's gradient, noise and all.
    missed
        What the window may have missed of a row's noise, see
        `blackjax_smile.preconditioners.rare_events.missed_variance`.
    """

    gradient_square: Array | float
    missed: Array | float


NO_EVIDENCE = Evidence(jnp.inf, 0.0)


def make_side(
    covariance: Array, level: Array, least: Array, evidence: Evidence, known: Array
) -> Side:
    r"""Return the floored factor of a covariance, the identity if nothing is known.

    .. math:: D_{ii} = \lambda A_{ii} + \min(\lambda G, \tfrac14 H_{ii}) + e_i

    :math:`G` is the geometric mean of the diagonal and :math:`\tfrac14 H` the `curvature_bound`,
    so that a row of little noise, that of an input of small numbers, moves as freely as its
    curvature allows, see `floor_level`. One without noise has :math:`\lambda \max(\alpha,
    \mathrm{mean\,diag} A)` in place of the minimum, and so have all while the level is above
    `BOUNDED_LEVEL`: a hidden unit that is nearly silent may wake up. :math:`e_i` is what the
    window may have missed of a row that few minibatches inform, as of an embedding's.
    ``least`` is :math:`\alpha`.

    A matrix is diagonalised in units of its floor,
    :math:`D^{-1/2} A D^{-1/2} = Q \Lambda Q^T`, so that
    :math:`F = D^{-1/2} Q (I + \Lambda)^{-1/2}` whitens the sum and diagonalises
    the floor: round-off in :math:`\Lambda` is small against the 1, in float32 and
    whatever the scales of the rows.
    """
    identity = jnp.ones_like(covariance) if covariance.ndim == 1 else jnp.eye(len(covariance))
    covariance = jnp.where(known, covariance, identity.astype(covariance.dtype) / (1 + 2 * level))
    diagonal = jnp.maximum(diagonal_of(covariance), 0)
    typical = level * jnp.maximum(jnp.mean(diagonal), least)
    is_bounded = known & (level <= BOUNDED_LEVEL) & has_noise(diagonal)
    enough = curvature_bound(evidence.gradient_square, diagonal)
    bound = jnp.minimum(level * geometric_mean(diagonal), enough)
    floor = level * diagonal + jnp.where(is_bounded, bound, typical) + evidence.missed
    if covariance.ndim == 1:
        return Side(jax.lax.rsqrt(diagonal + floor), floor / (diagonal + floor), floor, level)
    root = jnp.sqrt(floor)
    eigenvalues, Q = eigh(covariance / (root[:, None] * root[None, :]))
    # Without noise the axes are the rows: what is seen of one is not of another.
    Q = jnp.where(jnp.any(diagonal > 0), Q, jnp.eye(len(Q), dtype=Q.dtype))
    total = 1 + jnp.maximum(eigenvalues, 0)
    return Side(Q * jax.lax.rsqrt(total)[None, :] / root[:, None], 1 / total, floor, level)


def new_level(side: Side, other: Side, whitened: Array, num_draws: Array) -> Array:
    """Raise the floor if the window's noise was not what the last one promised.

    In whitened coordinates the promise is the identity, the floor's share included;
    the largest eigenvalue of what came is compared with that of a sample.
    """
    promised = jnp.mean(1 - other.share)
    total = whitened / jnp.where(promised > 0, promised, 1)
    if total.ndim == 1:
        total = total + side.share
        surprise = jnp.max(total) / jnp.mean(total)
    else:
        total = total + jnp.diag(side.share)
        surprise = eigh(total)[0][-1] / jnp.mean(jnp.diagonal(total))
    surprise /= (1 + jnp.sqrt(len(total) / jnp.maximum(num_draws, 1))) ** 2
    change = surprise / MAX_SURPRISE
    is_calm = (side.level < CALM_LEVEL) & (change < 1)
    change = jnp.clip(jnp.where(is_calm, change**3, change), 1 / MAX_FALL, MAX_RISE)
    return jnp.clip(side.level * change, *FLOOR_RANGE).astype(side.level.dtype)


def restrain_side(side: Side, scale: Array) -> Side:
    """Return the side of a map whose rows move less, by ``scale``, shape ``(m,)``."""
    rows = scale if side.factor.ndim == 1 else scale[:, None]
    return side._replace(factor=rows * side.factor, floor=side.floor / scale**2)


def unwhiten(side: Side, whitened: Array, num_draws: Array) -> Array:
    r"""Return :math:`F^{-T} S F^{-1}`, where :math:`F^{-1} = C^{-1} F^T D`.

    With few draws the correlations in :math:`S` are noise: the variances along the
    whitened axes are used alone.
    """
    if whitened.ndim == 1:
        return whitened / side.factor**2
    enough = num_draws >= DRAWS_PER_ROW * len(whitened)
    whitened = jnp.where(enough, whitened, jnp.diag(jnp.diagonal(whitened)))
    inverse = side.factor.T * side.floor[None, :] / side.share[:, None]
    return inverse.T @ whitened @ inverse


def effective_dimension(whitened: Array) -> Array:
    """Return how many independent columns (or rows) a draw is worth."""
    diagonal = diagonal_of(whitened)
    square = jnp.sum(diagonal**2)
    return jnp.sum(diagonal) ** 2 / jnp.where(square > 0, square, 1)


def diagonal_of(side: Array) -> Array:
    """Return the diagonal of a covariance, which may be stored as that alone."""
    return side if side.ndim == 1 else jnp.diagonal(side)


def times_left(factor: Array, matrix: Array, transpose: bool = False) -> Array:
    """Return the product factor matrix, or factor^T matrix; the factor may be a diagonal."""
    if factor.ndim == 1:
        return factor[:, None] * matrix
    return (factor.T if transpose else factor) @ matrix


def times_right(matrix: Array, factor: Array, transpose: bool = False) -> Array:
    """Return the product matrix factor, or matrix factor^T; the factor may be a diagonal."""
    if factor.ndim == 1:
        return matrix * factor[None, :]
    return matrix @ (factor.T if transpose else factor)
