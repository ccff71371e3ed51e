r"""The low-rank preconditioner: a diagonal, corrected in a few noisy directions."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from blackjax.types import Array, ArrayTree, PRNGKey
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile.preconditioners.base import (
    CurvatureStep,
    Draw,
    PreconditionerEstimator,
    raveled,
)
from blackjax_smile.preconditioners.fixed import LowRankPreconditioner
from blackjax_smile.preconditioners.floor import floor_level, noise_floor
from blackjax_smile.preconditioners.moments import (
    NoiseMoments,
    init_moments,
    unknown_range,
    update_gradient,
    update_moments,
    variance_of,
)
from blackjax_smile.preconditioners.variances import geometric_mean

__all__ = ["EstimatedLowRankPreconditioner", "low_rank_estimator"]

#: Number of directions that are followed, unless there are fewer parameters.
NUM_DIRECTIONS = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EstimatedLowRankPreconditioner(LowRankPreconditioner):
    r""":math:`F = \mathrm{diag}(\sigma) K` with :math:`K = I + U (\Lambda^{1/2} - I) U^T`.

    ``floor`` is the diagonal of :math:`R`, shape ``(d,)``; the complementary noise
    has covariance :math:`F^T R F = K \mathrm{diag}(\sigma^2 R) K`, of trace ``trace``.
    """

    floor: Array
    trace: Array

    @property
    def complement_trace(self) -> Array:
        return self.trace

    @property
    def inverse_mass_matrix(self) -> LowRankInverseMassMatrix:
        """The same map in BlackJAX's terms."""
        return LowRankInverseMassMatrix(self.sigma, self.U, self.sqrt_lam**2)

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
        complement = self.whiten(unravel(jnp.sqrt(self.floor).astype(flat.dtype) * flat))
        return jax.tree.map(
            lambda z, c: isotropic.astype(z.dtype) * z + complementary.astype(z.dtype) * c,
            draw(key_isotropic, momentum),
            complement,
        )


class Sketch(NamedTuple):
    r"""Moments of a window's noise: variances, and its covariance on a few directions.

    moments
        Of the noise and the gradients, shape ``(d,)``.
    probes
        :math:`P`, shape ``(d, k)``: the last window's directions.
    image
        Summed :math:`n (n^T P)`, shape ``(d, k)``.
    """

    moments: NoiseMoments
    probes: Array
    image: Array


def low_rank_estimator(num_directions: int = NUM_DIRECTIONS) -> PreconditionerEstimator:
    r"""Estimate an `EstimatedLowRankPreconditioner`, O(dk) a step and in memory.

    The diagonal is that of the diagonal preconditioner,
    :math:`\sigma_i^2 = 1 / (V_{ii} + R_{ii})`. The noise scaled by it has
    covariance :math:`C` with unit diagonal, of which the window keeps the image
    :math:`Y = C \Omega` of :math:`k` orthonormal directions: the Nyström
    approximation :math:`Y (\Omega^T Y)^{-1} Y^T` [1]_ gives the leading
    eigenvectors :math:`U` and eigenvalues :math:`\mu`, and the next window's
    :math:`\Omega`, so that windows together are a subspace iteration. With
    :math:`m` the mean of the eigenvalues that are left, :math:`\Lambda = m / \mu`.

    A window of :math:`n` draws shows eigenvalues up to
    :math:`m (1 + \sqrt{d / n})^2` where there is only white noise; those below are
    set to :math:`m`, and those above corrected for it (the spiked model [2]_).

    References
    ----------
    .. [1] Tropp et al., "Fixed-rank approximation of a positive-semidefinite matrix
       from streaming data", arXiv:1706.05736.
    .. [2] Baik and Silverstein, "Eigenvalues of large sample covariance matrices of
       spiked population models", arXiv:math/0408165.
    """

    def init(variance: ArrayTree) -> EstimatedLowRankPreconditioner:
        flat, _ = ravel_pytree(variance)
        d = len(flat)
        k = min(num_directions, d)
        start = jax.random.normal(jax.random.key(0), (d, k), flat.dtype)
        U, _ = jnp.linalg.qr(start)
        return _preconditioner(flat, geometric_mean(flat), U, jnp.ones(k, flat.dtype))

    def init_statistics(preconditioner: EstimatedLowRankPreconditioner) -> Sketch:
        sigma, U = preconditioner.sigma, preconditioner.U
        moments = init_moments(sigma, with_gradient=True)
        return Sketch(moments, sigma[:, None] * U, jnp.zeros_like(U))

    def update(sketch: Sketch, noise: ArrayTree, whitened_noise: ArrayTree) -> Sketch:
        del whitened_noise
        flat, _ = ravel_pytree(noise)
        flat = flat.astype(sketch.image.dtype)
        return Sketch(
            update_moments(sketch.moments, flat, flat),
            sketch.probes,
            sketch.image + flat[:, None] * (flat @ sketch.probes)[None, :],
        )

    def add_gradient(sketch: Sketch, gradient: ArrayTree, step: CurvatureStep) -> Sketch:
        flat, _ = ravel_pytree(gradient)
        return sketch._replace(moments=update_gradient(sketch.moments, flat, raveled(step)))

    def fit(
        sketch: Sketch, preconditioner: EstimatedLowRankPreconditioner
    ) -> EstimatedLowRankPreconditioner:
        count = jnp.maximum(sketch.moments.count, 1)
        variance = variance_of(sketch.moments)
        level = floor_level(sketch.moments, preconditioner.floor)
        diagonal = _preconditioner(
            variance, level, preconditioner.U, jnp.ones_like(sketch.probes[0])
        )
        # C = sigma V sigma on the directions Omega, the floor included.
        omega, _ = jnp.linalg.qr(sketch.probes / diagonal.sigma[:, None])
        # Omega spans the probes: Omega = (P / sigma) T^-1.
        T = omega.T @ (sketch.probes / diagonal.sigma[:, None])
        scaled = diagonal.sigma[:, None] * sketch.image / count
        image = jax.scipy.linalg.solve_triangular(T.T, scaled.T, lower=True).T
        image += (diagonal.sigma**2 * diagonal.floor)[:, None] * omega
        U, mu = _nystrom(omega, image)
        d, k = U.shape
        left = jnp.maximum(d - jnp.sum(mu), 0) / max(d - k, 1) if d > k else jnp.min(mu)
        lam = 1 / _unbiased(mu / jnp.where(left > 0, left, 1), d / count)
        new = _preconditioner(variance, level, U, lam)
        usable = (jnp.max(variance) > 0) & (left > 0) & _tree.all_finite(new)
        return _tree.select(usable, new, preconditioner)

    def restrain(preconditioner: EstimatedLowRankPreconditioner, scale: ArrayTree):
        rows, _ = ravel_pytree(scale)
        return dataclasses.replace(
            preconditioner,
            sigma=rows * preconditioner.sigma,
            floor=preconditioner.floor / rows**2,
        )

    def noise_eigenvalues(sketch: Sketch, preconditioner: EstimatedLowRankPreconditioner):
        del preconditioner
        return unknown_range(sketch.moments.count)

    return PreconditionerEstimator(
        init, init_statistics, update, fit, noise_eigenvalues, restrain, add_gradient
    )


def _preconditioner(
    variance: Array, level: Array, U: Array, lam: Array
) -> EstimatedLowRankPreconditioner:
    floor = noise_floor(variance, level)
    sigma = jax.lax.rsqrt(jnp.where(level > 0, variance + floor, 1))
    share = sigma**2 * floor
    # tr(S K^2) with K^2 = I + U (Lambda - I) U^T
    trace = jnp.sum(share) + jnp.sum((lam - 1) * (share @ U**2))
    return EstimatedLowRankPreconditioner(sigma, U, jnp.sqrt(lam), floor, trace)


def _nystrom(omega: Array, image: Array) -> tuple[Array, Array]:
    """Return eigenvectors and eigenvalues of the Nyström approximation.

    Shifted, as in Tropp et al., so that round-off leaves the core positive definite.
    """
    shift = jnp.finfo(image.dtype).eps * jnp.linalg.norm(image) * 10
    shifted = image + shift * omega
    core = omega.T @ shifted
    lower = jnp.linalg.cholesky(0.5 * (core + core.T))
    root = jax.scipy.linalg.solve_triangular(lower, shifted.T, lower=True).T
    U, singular, _ = jnp.linalg.svd(root, full_matrices=False)
    return U, jnp.maximum(singular**2 - shift, 0)


def _unbiased(mu: Array, ratio: Array) -> Array:
    r"""Return population eigenvalues, in units of the others', of sample ones.

    A population eigenvalue :math:`\ell > 1 + \sqrt\gamma` shows as
    :math:`\mu = \ell (1 + \gamma / (\ell - 1))`.
    """
    is_signal = mu > (1 + jnp.sqrt(ratio)) ** 2
    b = mu + 1 - ratio
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * mu, 0))
    return jnp.where(is_signal, 0.5 * (b + root), 1)
