"""Measuring what the gradient noise of a model is like."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayLikeTree, ArrayTree, PRNGKey
from jax.flatten_util import ravel_pytree

from blackjax_smile import _tree
from blackjax_smile._jitted import jitted
from blackjax_smile.minibatch_gradient import (
    anisotropy,
    init_isotropy,
    update_isotropy,
    value_and_grad,
)
from blackjax_smile.preconditioners.fixed import as_preconditioner, check_dimension

__all__ = ["GradientNoise", "NoiseSummary", "gradient_noise"]


class NoiseSummary(NamedTuple):
    """The gradient noise in one system of coordinates.

    eigenvalues
        Of the sample covariance, ascending: all ``d`` of them, or the
        ``num_draws`` that are not zero when there are fewer draws than parameters.
        Sampling alone spreads those of white noise to about
        ``(1 -+ sqrt(d / num_draws))**2`` times their mean.
    anisotropy
        Relative standard deviation of the true covariance's eigenvalues, free of
        that spread: 0 for white noise.
    noise_share
        Share of the mean squared gradient that is noise, from 0 to 1: of the rotation
        of the momentum, that share is due to noise. Near 1, the noise is the thermostat
        and has to be white; near 0, the gradients are as good as full-batch ones.
    excess_kurtosis
        Of the noise of a parameter, averaged over the parameters: 0 for normal
        noise. Large values mean rare, large gradients.
    """

    eigenvalues: Array
    anisotropy: Array
    noise_share: Array
    excess_kurtosis: Array


class GradientNoise(NamedTuple):
    """The gradient noise at a position, before and after a preconditioner.

    raw
        `NoiseSummary` in the parameters' own coordinates.
    whitened
        `NoiseSummary` after the preconditioner, complementary noise included.
    num_draws
        Number of minibatches with finite gradients, from which both are computed.
    """

    raw: NoiseSummary
    whitened: NoiseSummary
    num_draws: Array


def gradient_noise(
    rng_key: PRNGKey,
    logdensity_fn: Callable,
    position: ArrayLikeTree,
    minibatch_fn: Callable[[PRNGKey], ArrayTree],
    num_draws: int = 1000,
    inverse_mass_matrix: Any = 1.0,
) -> GradientNoise:
    r"""Measure the gradient noise at a position.

    Each minibatch gives the noise :math:`n = (g_1 - g_2) / 2` of its gradient
    from its two halves, free of the signal.

    Parameters
    ----------
    rng_key
        Key of the minibatches' draws.
    logdensity_fn
        ``(position, minibatch) -> logdensity``, averaging over the minibatch.
    position
        Where to look: a typical draw of the posterior, not its mode alone.
    minibatch_fn
        ``rng_key -> minibatch`` with an even number of rows.
    num_draws
        Number of minibatches; memory is ``num_draws`` times that of the parameters.
    inverse_mass_matrix
        The preconditioner to judge: anything that `smile` takes,
        ``parameters["inverse_mass_matrix"]`` of the adaptation say.

    Returns
    -------
    `GradientNoise`, with the spectrum before and after the preconditioner.

    Raises
    ------
    ValueError
        For fewer than two draws, an odd batch size, or a preconditioner that does
        not fit the position.

    Examples
    --------
    Two columns on different scales: the noise is anisotropic, and a diagonal map
    with the inverse scales whitens it.

    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = jax.random.normal(jax.random.key(0), (1000, 2)) * jnp.array([1.0, 30.0])
    >>> def logdensity_fn(x, batch):
    ...     return -500 * jnp.mean((batch - x) ** 2 @ jnp.ones(2))
    >>> noise = blackjax_smile.gradient_noise(
    ...     jax.random.key(1), logdensity_fn, jnp.zeros(2),
    ...     blackjax_smile.minibatch_sampler(data, 50),
    ...     inverse_mass_matrix=jnp.array([1.0, 1 / 900]))
    >>> bool(noise.raw.anisotropy > 0.9), bool(noise.whitened.anisotropy < 0.5)
    (True, True)
    """
    position = _tree.as_float_tree(position)
    if num_draws < 2:
        raise ValueError(f"gradient_noise needs at least 2 draws, got {num_draws}.")
    identity, preconditioner = as_preconditioner(1.0), as_preconditioner(inverse_mass_matrix)
    check_dimension(preconditioner, position)

    keys = jax.random.split(rng_key, num_draws)
    measure = jitted(_measure, logdensity_fn, minibatch_fn)
    return GradientNoise(*measure(keys, position, identity, preconditioner))


def _measure(logdensity_fn, minibatch_fn, keys, position, identity, preconditioner):
    def draw(key: PRNGKey):
        batch_key, complement_key = jax.random.split(key)
        gradient_fn = value_and_grad(logdensity_fn, minibatch_fn(batch_key), 2)
        (logdensity, split), grad = gradient_fn(position)
        noise = jax.tree.map(lambda draws: draws[0], split.noise)
        one = jnp.ones((), _tree.scalar_dtype(position))
        complement = preconditioner.refresh_noise(
            complement_key, grad, 0 * one, one, _tree.random_signs
        )
        # The complementary noise adds to what turns the momentum, and to the noise in it.
        whitened_grad, whitened_noise = (
            jax.tree.map(jnp.add, preconditioner.whiten(tree), complement) for tree in (grad, noise)
        )
        finite = jnp.isfinite(logdensity) & _tree.all_finite(split)
        rows = (identity.whiten(grad), noise, whitened_grad, whitened_noise)
        return [ravel_pytree(row)[0] for row in rows], finite

    (grad, noise, whitened_grad, whitened_noise), finite = jax.lax.map(draw, keys)
    raw = _summarise(grad, noise, finite)
    whitened = _summarise(whitened_grad, whitened_noise, finite)
    return raw, whitened, jnp.sum(finite)


def _summarise(grad: Array, noise: Array, finite: Array) -> NoiseSummary:
    """Summarise draws of shape ``(num_draws, d)``, of which some may not be finite."""
    count = jnp.sum(finite, dtype=noise.dtype)
    grad, noise = (jnp.where(finite[:, None], x, 0) for x in (grad, noise))
    # The smaller of the two Gram matrices has all the eigenvalues that are not zero.
    gram = noise.T @ noise if noise.shape[1] <= noise.shape[0] else noise @ noise.T
    square = jnp.sum(noise**2, axis=0) / count
    noisy = square > 0
    # Divided by their deviations first: fourth powers would leave the range of float32.
    scaled = noise * jax.lax.rsqrt(jnp.where(noisy, square, 1))[None]
    kurtosis = jnp.where(noisy, jnp.sum(scaled**4, axis=0) / count - 3, 0)
    mean_square = jnp.mean(square)
    rows = noise * jax.lax.rsqrt(jnp.where(mean_square > 0, mean_square, 1))

    def body(moments, row):
        n, ok = row
        return _tree.select(ok, update_isotropy(moments, n[None]), moments), None

    moments, _ = jax.lax.scan(body, init_isotropy(noise[0]), (rows, finite))
    return NoiseSummary(
        eigenvalues=jnp.linalg.eigvalsh(gram / count),
        anisotropy=anisotropy(moments)[1],
        # Without a signal the estimate is above 1 as often as below.
        noise_share=jnp.minimum(jnp.sum(noise**2) / jnp.sum(grad**2), 1),
        excess_kurtosis=jnp.sum(kurtosis) / jnp.maximum(jnp.sum(noisy), 1).astype(noise.dtype),
    )
