r"""The diagonal preconditioner and its estimation."""

import dataclasses

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey
from blackjax.util import pytree_size
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import Draw, PreconditionerEstimator
from blackjax_smile.preconditioners.floor import FLOOR, floor_level, noise_floor
from blackjax_smile.preconditioners.moments import (
    NoiseMoments,
    eigenvalue_range,
    init_moments,
    update_gradient,
    update_moments,
    variance_of,
)
from blackjax_smile.preconditioners.variances import geometric_mean

__all__ = ["DiagonalPreconditioner", "diagonal_estimator"]

#: Up to this dimension the floor is one of each parameter. Beyond, one of each leaf: it would cost
#: two copies of the parameters in the warmup, one in the map.
FLOORS_LIMIT = 100_000

#: Vectors of up to so many numbers without noise are restrained number by number.
VECTOR_LIMIT = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalPreconditioner:
    r""":math:`F = \mathrm{diag}(s)`, with the floor's noise in whitened units.

    scale
        Tree of :math:`s_i = (V_{ii} + R_{ii})^{-1/2}`.
    level
        Tree of :math:`G_i` of `noise_floor`, an array or, in large models, a scalar per leaf;
        0 where there is no noise to whiten.
    """

    scale: ArrayTree
    level: ArrayTree
    complement_trace: Array

    @property
    def complement(self) -> ArrayTree:
        r"""Tree of :math:`s_i^2 R_{ii} = \frac{\lambda}{1 + \lambda} (1 + G_i s_i^2)`.

        The floor's share of a whitened variance, between 0 and 1. Computed where it
        is used: kept, it would cost a copy of the parameters of a large model.
        """

        def share(s, G):
            return jnp.where(G > 0, FLOOR / (1 + FLOOR) * (1 + G * s**2), 0)

        return jax.tree.map(share, self.scale, self.level)

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


def from_variance(variance: ArrayTree, level: ArrayTree) -> DiagonalPreconditioner:
    """Return the preconditioner that whitens noise of the given variances, see `noise_floor`."""
    floor = noise_floor(variance, level)
    total = jax.tree.map(
        lambda v, r, G: jnp.where(G > 0, v + r, 1).astype(v.dtype), variance, floor, level
    )
    scale = jax.tree.map(jax.lax.rsqrt, total)
    share = jax.tree.map(lambda r, t: jnp.sum(r / t), floor, total)
    return DiagonalPreconditioner(scale, level, sum(jax.tree.leaves(share)))


def restrain(preconditioner: DiagonalPreconditioner, scale: ArrayTree) -> DiagonalPreconditioner:
    """Return the map with its parameters scaled, a leaf as a whole where it has one level."""
    level = preconditioner.level
    scale = jax.tree.map(
        lambda G, c: c if G.shape == c.shape else jnp.min(c, initial=1), level, scale
    )
    return dataclasses.replace(
        preconditioner,
        scale=jax.tree.map(jnp.multiply, preconditioner.scale, scale),
        level=jax.tree.map(lambda G, c: G / c**2, level, scale),
    )


def diagonal_estimator(spectrum_limit: int) -> PreconditionerEstimator:
    """Estimate a `DiagonalPreconditioner`, O(d) a step.

    Parameters
    ----------
    spectrum_limit
        Up to this dimension the full covariance of the whitened noise is
        followed too, so that its eigenvalues can be reported.
    """

    def has_floors(like: ArrayTree) -> bool:
        return pytree_size(like) <= FLOORS_LIMIT

    def init(variance: ArrayTree) -> DiagonalPreconditioner:
        G = geometric_mean(variance)
        shaped = has_floors(variance)
        level = jax.tree.map(lambda v: jnp.full(v.shape if shaped else (), G, v.dtype), variance)
        return from_variance(variance, level)

    def init_statistics(preconditioner: DiagonalPreconditioner) -> NoiseMoments:
        scale = preconditioner.scale
        followed = pytree_size(scale) <= spectrum_limit
        return init_moments(scale, with_outer=followed, with_gradient=has_floors(scale))

    def fit(
        moments: NoiseMoments, preconditioner: DiagonalPreconditioner
    ) -> DiagonalPreconditioner:
        old_floor = jax.tree.map(
            lambda c, s: c / s**2, preconditioner.complement, preconditioner.scale
        )
        variance = variance_of(moments)
        level = floor_level(moments, old_floor)
        new = from_variance(variance, level)
        return _tree.select(geometric_mean(variance) > 0, new, preconditioner)

    def noise_eigenvalues(moments: NoiseMoments, preconditioner: DiagonalPreconditioner):
        if moments.whitened_outer is None:
            return eigenvalue_range(moments)
        complement, _ = ravel_pytree(preconditioner.complement)
        return eigenvalue_range(moments, jnp.diag(complement))

    return PreconditionerEstimator(
        init,
        init_statistics,
        update_moments,
        fit,
        noise_eigenvalues,
        restrain,
        update_gradient,
        vector_limit=VECTOR_LIMIT,
    )
