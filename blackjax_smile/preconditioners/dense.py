r"""The dense preconditioner, for models of up to about a thousand parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree, PRNGKey
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import (
    CurvatureStep,
    Draw,
    PreconditionerEstimator,
    raveled,
)
from blackjax_smile.preconditioners.floor import floor_level, noise_floor
from blackjax_smile.preconditioners.moments import (
    NoiseMoments,
    eigenvalue_range,
    init_moments,
    update_gradient,
    update_moments,
    variance_of,
)
from blackjax_smile.preconditioners.stiffness import excess_stiffness, principal_curvature
from blackjax_smile.preconditioners.variances import geometric_mean

__all__ = ["DensePreconditioner", "dense_estimator"]

#: Draws of the noise that a window must hold, per parameter, before correlations
#: are estimated from it; with fewer, the sample covariance is nearly singular and
#: only the variances are used.
DRAWS_PER_PARAMETER = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DensePreconditioner:
    r"""A full matrix :math:`F`.

    factor
        :math:`F`, shape ``(d, d)``, in the order of
        `jax.flatten_util.ravel_pytree`; :math:`F F^T` is the inverse mass matrix.
    floor
        Diagonal of :math:`R`, the variance of the complementary noise of the
        gradient, shape ``(d,)``.
    softening
        What of the complementary noise keeps stiff directions from moving too freely: the
        variance that it adds along each column of :math:`F`, in whitened coordinates, shape
        ``(d,)``, between 0 and 1.
    """

    factor: Array
    floor: Array
    softening: Array
    complement_trace: Array

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        flat, unravel = ravel_pytree(momentum)
        return unravel((self.factor @ flat).astype(flat.dtype))

    def whiten(self, grad: ArrayTree) -> ArrayTree:
        flat, unravel = ravel_pytree(grad)
        return unravel((flat @ self.factor).astype(flat.dtype))

    def refresh_noise(
        self,
        rng_key: PRNGKey,
        momentum: ArrayTree,
        isotropic: Array,
        complementary: Array,
        draw: Draw,
    ) -> ArrayTree:
        key_isotropic, key_complementary = jax.random.split(rng_key)
        flat, unravel = ravel_pytree(draw(key_complementary, momentum))
        complement = (jnp.sqrt(self.floor).astype(flat.dtype) * flat) @ self.factor
        # What is diagonal in whitened coordinates shares one draw.
        flat, _ = ravel_pytree(draw(key_isotropic, momentum))
        scale = jnp.sqrt(isotropic**2 + complementary**2 * self.softening)
        return unravel((scale * flat + complementary * complement).astype(flat.dtype))


def dense_estimator() -> PreconditionerEstimator:
    r"""Estimate a `DensePreconditioner`, O(d^2) a step.

    A window's noise is followed in the coordinates whitened by the factor
    :math:`F` in use, :math:`C = F^T V F`, and the new factor is

    .. math:: F' = F W^{-T}, \qquad W W^T = C + F^T R F,

    so that each window starts from the precision of the last: at a condition
    number of 1e5, float32 moments of the raw noise could not be factorised.
    """

    def init(variance: ArrayTree) -> DensePreconditioner:
        flat_variance, _ = ravel_pytree(variance)
        G = geometric_mean(flat_variance)
        floor = noise_floor(flat_variance, G)
        total = jnp.where(G > 0, flat_variance + floor, 1)
        return _with_trace(jnp.diag(jax.lax.rsqrt(total)), floor)

    def init_statistics(preconditioner: DensePreconditioner) -> NoiseMoments:
        return init_moments(
            preconditioner.floor, with_outer=True, with_gradient=True, with_curvature=True
        )

    def update(moments: NoiseMoments, noise: ArrayTree, whitened_noise: ArrayTree) -> NoiseMoments:
        return update_moments(moments, ravel_pytree(noise)[0], whitened_noise)

    def add_gradient(
        moments: NoiseMoments, gradient: ArrayTree, step: CurvatureStep
    ) -> NoiseMoments:
        return update_gradient(moments, ravel_pytree(gradient)[0], raveled(step))

    def fit(moments: NoiseMoments, preconditioner: DensePreconditioner) -> DensePreconditioner:
        variance = variance_of(moments)
        level = floor_level(moments, preconditioner.floor)
        floor = noise_floor(variance, level)
        assert moments.whitened_outer is not None
        total = moments.whitened_outer / jnp.maximum(moments.count, 1)
        total += _complement(preconditioner.factor, floor)
        enough = moments.count >= DRAWS_PER_PARAMETER * len(floor)
        total = jnp.where(enough, total, jnp.diag(jnp.diag(total)))
        lower = jnp.linalg.cholesky(total)
        transposed = jax.scipy.linalg.solve_triangular(lower, preconditioner.factor.T, lower=True)
        fitted = _with_trace(transposed.T, floor)
        fitted = _soften(fitted, moments, lower, enough)
        usable = (geometric_mean(variance) > 0) & jnp.all(jnp.isfinite(fitted.factor))
        return _tree.select(usable, fitted, preconditioner)

    def restrain(preconditioner: DensePreconditioner, scale: ArrayTree) -> DensePreconditioner:
        rows, _ = ravel_pytree(scale)
        return dataclasses.replace(
            preconditioner,
            factor=rows[:, None] * preconditioner.factor,
            floor=preconditioner.floor / rows**2,
        )

    def noise_eigenvalues(moments: NoiseMoments, preconditioner: DensePreconditioner):
        injected = _complement(preconditioner.factor, preconditioner.floor)
        return eigenvalue_range(moments, injected + jnp.diag(preconditioner.softening))

    return PreconditionerEstimator(
        init,
        init_statistics,
        update,
        fit,
        noise_eigenvalues,
        restrain,
        add_gradient,
        many_draws=True,
    )


def _with_trace(factor: Array, floor: Array, softening: Array | float = 0.0) -> DensePreconditioner:
    softening = jnp.broadcast_to(jnp.asarray(softening, floor.dtype), floor.shape)
    trace = jnp.sum(factor**2 * floor[:, None]) + jnp.sum(softening)
    return DensePreconditioner(factor, floor, softening, trace)


def _complement(factor: Array, floor: Array) -> Array:
    """Return the covariance of the floor's noise in whitened coordinates."""
    return factor.T @ (floor[:, None] * factor)


def _soften(
    fitted: DensePreconditioner, moments: NoiseMoments, lower: Array, enough: Array
) -> DensePreconditioner:
    """Return the map that moves stiff directions less, with noise along them in exchange."""
    assert moments.curvature is not None
    axes, curvature = principal_curvature(
        moments.curvature, moments.num_gradients, lower, _complement(fitted.factor, fitted.floor)
    )
    # The range of a sample covariance's eigenvalues.
    spread = (1 + jnp.sqrt(len(lower) / jnp.maximum(moments.num_gradients, 1))) ** 2
    excess = jnp.where(enough, excess_stiffness(curvature, spread), 1)
    softened = fitted.factor @ (axes * jax.lax.rsqrt(excess)[None, :])
    # No rotation without need: it mixes parameters of very different floors.
    factor = jnp.where(jnp.any(excess > 1), softened, fitted.factor)
    return _with_trace(factor, fitted.floor, 1 - 1 / excess)
