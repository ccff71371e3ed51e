r"""The Kronecker-factored preconditioner, for neural networks.

The noise of a matrix of parameters is modelled as matrix-normal: covariance
:math:`A` between rows times covariance :math:`B` between columns.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import Draw, PreconditionerEstimator
from blackjax_smile.preconditioners.kronecker_moments import (
    KroneckerMoments,
    find_evidence,
    init_kronecker_moments,
    update_kronecker_gradient,
    update_kronecker_moments,
)
from blackjax_smile.preconditioners.kronecker_side import (
    INITIAL_FLOOR,
    NO_EVIDENCE,
    Evidence,
    Side,
    diagonal_of,
    effective_dimension,
    make_side,
    new_level,
    restrain_side,
    times_left,
    times_right,
    unwhiten,
)
from blackjax_smile.preconditioners.matrix_layout import MatrixLayout, matrix_layout
from blackjax_smile.preconditioners.moments import unknown_range
from blackjax_smile.preconditioners.variances import geometric_mean

__all__ = ["KroneckerPreconditioner", "kronecker_estimator"]

#: A factor of more rows is a diagonal: a full one would make the step cost several
#: gradients of a wide layer.
SIDE_LIMIT = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KroneckerPreconditioner:
    r"""Per matrix of parameters :math:`F U = F_A U F_B^T`.

    The floor is put under each factor, :math:`(A + D_A) \otimes (B + D_B)`. The
    difference to :math:`A \otimes B`,

    .. math:: R = D_A \otimes B + A \otimes D_B + D_A \otimes D_B,

    is the covariance of the complementary noise. In whitened coordinates it is
    :math:`I - (I - C_A) \otimes (I - C_B)` with :math:`C = F^T D F`, which the
    rotation of the factors makes diagonal: one scaled draw instead of three
    matrix normals, and exact.

    left, right
        The `Side` of the rows and that of the columns of every matrix.
    geometric_mean
        Geometric mean of the noise variances, 0 where there is no noise to whiten.
    layout
        Which leaves make which matrix; static.
    """

    left: list[Side]
    right: list[Side]
    geometric_mean: Array
    complement_trace: Array
    layout: MatrixLayout = dataclasses.field(metadata={"static": True})

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        def move(a, b, u):
            return times_right(times_left(a, u), b, transpose=True).astype(u.dtype)

        return self.layout.map(move, *self._factors(), momentum)

    def whiten(self, grad: ArrayTree) -> ArrayTree:
        def whiten(a, b, g):
            return times_right(times_left(a, g.astype(a.dtype), transpose=True), b)

        return self.layout.map(whiten, *self._factors(), grad)

    def refresh_noise(
        self,
        rng_key: PRNGKey,
        momentum: ArrayTree,
        isotropic: Array,
        complementary: Array,
        draw: Draw,
    ) -> ArrayTree:
        def scale(a, b, z):
            # 1 - (1 - a) (1 - b), free of cancellation.
            complement = a[:, None] + b[None, :] - a[:, None] * b[None, :]
            complement = jnp.where(self.geometric_mean > 0, complement, 0)
            return z * jnp.sqrt(isotropic**2 + complementary**2 * complement).astype(z.dtype)

        left, right = ([side.share for side in sides] for sides in (self.left, self.right))
        return self.layout.map(scale, left, right, draw(rng_key, momentum))

    def _factors(self) -> tuple[list[Array], list[Array]]:
        return [side.factor for side in self.left], [side.factor for side in self.right]


def kronecker_estimator(side_limit: int = SIDE_LIMIT) -> PreconditionerEstimator:
    r"""Estimate a `KroneckerPreconditioner`, O(mn (m + n)) a step for each matrix.

    The flip-flop iteration for a matrix normal,

    .. math:: A = \frac1n E[N B^{-1} N^T], \qquad B = \frac1m E[N^T A^{-1} N],

    takes one step per window, whose draws are not kept: whitened by the factors
    in use, the noise :math:`\tilde N = F_A^T N F_B` has
    :math:`A = F_A^{-T} E[\tilde N \tilde N^T] F_A^{-1} / n`, and likewise
    :math:`B`, so two small matrices per window are enough. For noise that is
    matrix-normal one step is exact.

    The noise of a network depends on where the chain is: a unit that was silent in
    the warmup wakes up, and a map that had stretched its directions far throws the
    chain about. How far each factor may stretch is its floor's level :math:`\lambda_A`.
    A window of noise along some axis far above what the last fit promised raises it,
    a window without surprise lowers it: hidden layers of networks end near 0.1 or 0.3,
    inputs and regressions, whose noise stays as it is, at 0.01 and below. There the
    floor of each row is bounded by its own curvature, too, so inputs may be in any units.

    Parameters
    ----------
    side_limit
        A factor of more rows is a diagonal.
    """

    def init(variance: ArrayTree) -> KroneckerPreconditioner:
        layout = matrix_layout(variance)
        matrices = layout.to_matrices(variance)
        rows = [jnp.mean(v, axis=1) for v in matrices]
        mean = [jnp.mean(r) for r in rows]
        columns = [
            jnp.mean(v, axis=0) / jnp.where(t > 0, t, 1)
            for v, t in zip(matrices, mean, strict=True)
        ]
        left = [jnp.diag(r) if _is_full(r) else r for r in rows]
        right = [jnp.diag(c) if _is_full(c) else c for c in columns]
        level = jnp.asarray(INITIAL_FLOOR)
        levels = [(level.astype(a.dtype), level.astype(a.dtype)) for a in left]
        unknown = [(NO_EVIDENCE, NO_EVIDENCE)] * len(left)
        return _from_covariances(left, right, levels, unknown, layout)

    def _is_full(side: Array) -> bool:
        return 1 < len(side) <= side_limit

    def init_statistics(preconditioner: KroneckerPreconditioner) -> KroneckerMoments:
        dtype = preconditioner.geometric_mean.dtype
        return init_kronecker_moments(preconditioner.left, preconditioner.right, dtype)

    def fit(
        moments: KroneckerMoments, preconditioner: KroneckerPreconditioner
    ) -> KroneckerPreconditioner:
        count = jnp.maximum(moments.count, 1)
        left, right, levels = [], [], []
        for a, b, sums_a, sums_b in zip(
            preconditioner.left, preconditioner.right, moments.left, moments.right, strict=True
        ):
            s_a = sums_a.whitened / count.astype(sums_a.whitened.dtype)
            s_b = sums_b.whitened / count.astype(sums_b.whitened.dtype)
            draws_a = count * effective_dimension(s_b)
            draws_b = count * effective_dimension(s_a)
            levels.append((new_level(a, b, s_a, draws_a), new_level(b, a, s_b, draws_b)))
            # Both hold the scale of the noise; it belongs to one of them.
            scale = jnp.mean(diagonal_of(s_a))
            left.append(unwhiten(a, s_a, draws_a))
            right.append(unwhiten(b, s_b / jnp.where(scale > 0, scale, 1), draws_b))
        evidence = find_evidence(moments, left, right)
        new = _from_covariances(left, right, levels, evidence, preconditioner.layout)
        usable = (new.geometric_mean > 0) & _tree.all_finite(new)
        return _tree.select(usable, new, preconditioner)

    def restrain(
        preconditioner: KroneckerPreconditioner, scale: ArrayTree
    ) -> KroneckerPreconditioner:
        rows = [jnp.min(m, axis=1) for m in preconditioner.layout.to_matrices(scale)]
        left = [restrain_side(side, r) for r, side in zip(rows, preconditioner.left, strict=True)]
        return dataclasses.replace(preconditioner, left=left)

    def noise_eigenvalues(moments: KroneckerMoments, preconditioner: KroneckerPreconditioner):
        del preconditioner
        return unknown_range(moments.count)

    return PreconditionerEstimator(
        init,
        init_statistics,
        update_kronecker_moments,
        fit,
        noise_eigenvalues,
        restrain,
        update_kronecker_gradient,
        vector_limit=side_limit,
    )


def _from_covariances(
    left: list[Array],
    right: list[Array],
    levels: list[tuple[Array, Array]],
    evidence: Sequence[tuple[Evidence, Evidence]],
    layout: MatrixLayout,
) -> KroneckerPreconditioner:
    r"""Return the preconditioner of noise :math:`A \otimes B`, floored.

    Factors without noise of their own get the :math:`\alpha, \beta` of `make_side` from the
    geometric mean of all variances, :math:`\alpha \beta = G`.
    """
    pairs = [(diagonal_of(a), diagonal_of(b)) for a, b in zip(left, right, strict=True)]
    G = geometric_mean([a[:, None] * b[None, :] for a, b in pairs])
    known = G > 0
    sides_a, sides_b, trace = [], [], jnp.zeros_like(G)
    for a, b, level, found, (diagonal_a, diagonal_b) in zip(
        left, right, levels, evidence, pairs, strict=True
    ):
        silent = jnp.sum(diagonal_a) * jnp.sum(diagonal_b) <= 0
        root = jnp.where(silent, jnp.sqrt(G), 0).astype(a.dtype)
        sides_a.append(make_side(a, level[0], root, found[0], known))
        sides_b.append(make_side(b, level[1], root, found[1], known))
        c_a, c_b = jnp.sum(sides_a[-1].share), jnp.sum(sides_b[-1].share)
        trace += (len(diagonal_b) * c_a + len(diagonal_a) * c_b - c_a * c_b).astype(G.dtype)
    return KroneckerPreconditioner(sides_a, sides_b, G, jnp.where(known, trace, 0), layout)
