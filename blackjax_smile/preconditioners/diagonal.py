r"""The diagonal preconditioner, the floor of the noise, and their estimation."""

import dataclasses

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey
from blackjax.util import pytree_size
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import Draw, PreconditionerEstimator
from blackjax_smile.preconditioners.moments import (
    NoiseMoments,
    eigenvalue_range,
    init_moments,
    update_moments,
    variance_of,
)
from blackjax_smile.preconditioners.rare_events import NEGLIGIBLE_VARIANCE, missed_variance

__all__ = [
    "DiagonalPreconditioner",
    "diagonal_estimator",
    "noise_floor",
]

#: The floor under the noise variance, as a share of the variance itself and of
#: its geometric mean: lambda in R_ii = lambda (V_ii + G).
FLOOR = 1e-4


def noise_floor(variance: ArrayTree, missed: ArrayTree | None = None) -> tuple[ArrayTree, Array]:
    r"""Return the floor :math:`R_{ii} = \lambda (V_{ii} + G) + e` and :math:`G`.

    :math:`G` is the geometric mean of the variances that are not negligible: it
    follows the parameters' own scales, where an arithmetic mean would drown the
    small ones. It is 0 where there is no noise at all.

    Parameters
    ----------
    variance
        Variance of the gradient noise of each parameter, a tree.
    missed
        Tree of scalars :math:`e`, one per leaf, see `rare_events.missed_variance`; None is 0.
    """
    leaves = jax.tree.leaves(variance)
    largest = jnp.max(jnp.stack([jnp.max(v, initial=0.0) for v in leaves]))
    present = [(v > NEGLIGIBLE_VARIANCE * largest) for v in leaves]
    count = sum(jnp.sum(p).astype(largest.dtype) for p in present)
    log_sum = sum(
        jnp.sum(jnp.where(p, jnp.log(jnp.where(p, v, 1)), 0))
        for p, v in zip(present, leaves, strict=True)
    )
    geometric_mean = jnp.where(count > 0, jnp.exp(log_sum / jnp.maximum(count, 1)), 0)
    floor = jax.tree.map(lambda v: FLOOR * (v + geometric_mean.astype(v.dtype)), variance)
    if missed is not None:
        floor = jax.tree.map(jnp.add, floor, missed)
    return floor, geometric_mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalPreconditioner:
    r""":math:`F = \mathrm{diag}(s)`, with the floor's noise in whitened units.

    scale
        Tree of :math:`s_i = (V_{ii} + R_{ii})^{-1/2}`.
    typical
        Tree of scalars, one per leaf: :math:`G + e / \lambda` of `noise_floor`, or what
        stands in for it where the leaf is restrained; 0 where there is no noise to whiten.
    """

    scale: ArrayTree
    typical: ArrayTree
    complement_trace: Array

    @property
    def complement(self) -> ArrayTree:
        r"""Tree of :math:`s_i^2 R_{ii} = \frac{\lambda}{1 + \lambda} (1 + G s_i^2)`.

        The floor's share of a whitened variance, between 0 and 1. Computed where it
        is used: kept, it would cost a copy of the parameters.
        """

        def share(s, G):
            return jnp.where(G > 0, FLOOR / (1 + FLOOR) * (1 + G * s**2), 0)

        return jax.tree.map(share, self.scale, self.typical)

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda s, u: s.astype(u.dtype) * u, self.scale, momentum)

    def whiten(self, grad: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda s, g: s * g.astype(s.dtype), self.scale, grad)

    def refresh_noise(
        self,
        rng_key: PRNGKey,
        momentum: ArrayTree,
        isotropic: Array,
        complementary: Array,
        draw: Draw,
    ) -> ArrayTree:
        # Both covariances are diagonal, so one draw with the summed variance does.
        return jax.tree.map(
            lambda c, z: z * jnp.sqrt(isotropic**2 + complementary**2 * c).astype(z.dtype),
            self.complement,
            draw(rng_key, momentum),
        )


def from_variance(variance: ArrayTree, missed: ArrayTree | None = None) -> DiagonalPreconditioner:
    """Return the preconditioner that whitens noise of the given variances, see `noise_floor`."""
    if missed is None:
        missed = jax.tree.map(lambda v: jnp.zeros((), v.dtype), variance)
    floor, geometric_mean = noise_floor(variance, missed)
    known = geometric_mean > 0
    total = jax.tree.map(lambda v, r: jnp.where(known, v + r, 1), variance, floor)
    scale = jax.tree.map(jax.lax.rsqrt, total)
    share = jax.tree.map(lambda r, t: jnp.sum(r / t), floor, total)
    typical = jax.tree.map(lambda e: geometric_mean.astype(e.dtype) + e / FLOOR, missed)
    return DiagonalPreconditioner(scale, typical, sum(jax.tree.leaves(share)))


def restrain(preconditioner: DiagonalPreconditioner, scale: ArrayTree) -> DiagonalPreconditioner:
    """Return the map with its leaves scaled, each by one number."""

    def restrained(G, c):
        return G / c.ravel()[0] ** 2 if c.size else G

    return dataclasses.replace(
        preconditioner,
        scale=jax.tree.map(jnp.multiply, preconditioner.scale, scale),
        typical=jax.tree.map(restrained, preconditioner.typical, scale),
    )


def diagonal_estimator(spectrum_limit: int) -> PreconditionerEstimator:
    """Estimate a `DiagonalPreconditioner`, O(d) a step.

    Parameters
    ----------
    spectrum_limit
        Up to this dimension the full covariance of the whitened noise is
        followed too, so that its eigenvalues can be reported.
    """

    def init_statistics(preconditioner: DiagonalPreconditioner) -> NoiseMoments:
        scale = preconditioner.scale
        return init_moments(scale, with_outer=pytree_size(scale) <= spectrum_limit)

    def fit(
        moments: NoiseMoments, preconditioner: DiagonalPreconditioner
    ) -> DiagonalPreconditioner:
        variance = variance_of(moments)
        _, geometric_mean = noise_floor(variance)
        missed = missed_variance(moments.count, variance, moments.present)
        return _tree.select(geometric_mean > 0, from_variance(variance, missed), preconditioner)

    def noise_eigenvalues(moments: NoiseMoments, preconditioner: DiagonalPreconditioner):
        if moments.whitened_outer is None:
            return eigenvalue_range(moments)
        complement, _ = ravel_pytree(preconditioner.complement)
        return eigenvalue_range(moments, jnp.diag(complement))

    return PreconditionerEstimator(
        from_variance, init_statistics, update_moments, fit, noise_eigenvalues, restrain
    )
