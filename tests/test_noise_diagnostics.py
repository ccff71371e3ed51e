import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.preconditioners import DensePreconditioner
from helpers import LinearRegression

pytestmark = pytest.mark.numerics

SCALES = jnp.asarray([0.1, 1.0, 10.0])
N = 4000


def logdensity_fn(position, minibatch):
    """The noise of the gradient is the minibatch's mean, the signal ``-drift * position``."""
    noise = jnp.mean(minibatch, axis=0)
    return noise @ position["w"] - 0.5 * jnp.sum(position["w"] ** 2)


def measure(minibatch_fn, position=0.0, num_draws=N, **options):
    tree = {"w": jnp.full(3, position)}
    return blackjax_smile.gradient_noise(
        jax.random.key(0), logdensity_fn, tree, minibatch_fn, num_draws, **options
    )


def normal(key):
    return SCALES[None] * jax.random.normal(key, (10, 3)) * np.sqrt(10)


def test_spectrum_before_and_after():
    """Eigenvalues are the squared scales, within 5 errors of sqrt(2 / n)."""
    noise = measure(normal, inverse_mass_matrix=SCALES**-2)
    error = 5 * np.sqrt(2 / N)
    np.testing.assert_allclose(noise.raw.eigenvalues, SCALES**2, rtol=error)
    # Neighbouring eigenvalues repel: the edges of white noise, 1 -+ 2 sqrt(d / n).
    np.testing.assert_allclose(noise.whitened.eigenvalues, 1, atol=error + 2 * np.sqrt(3 / N))
    exact = np.std(SCALES**2) / np.mean(SCALES**2)
    np.testing.assert_allclose(noise.raw.anisotropy, exact, rtol=0.1)
    assert noise.whitened.anisotropy < 0.4
    assert noise.num_draws == N


def test_noise_share():
    """Signal and noise of known size."""
    white = lambda key: jax.random.normal(key, (10, 3)) * np.sqrt(10)  # noqa: E731
    np.testing.assert_allclose(measure(white).raw.noise_share, 1.0, rtol=0.05)
    # |signal|^2 = 3 * 2^2, |noise|^2 = 3.
    np.testing.assert_allclose(measure(white, 2.0).raw.noise_share, 1 / 5, rtol=0.08)


def test_noise_share_with_a_complement():
    """Half of the whitened variance is injected: it is noise in the gradient, too."""
    half = DensePreconditioner(jnp.eye(3) * 0.5**0.5, jnp.ones(3), jnp.zeros(3), jnp.asarray(1.5))
    white = lambda key: jax.random.normal(key, (10, 3)) * np.sqrt(10)  # noqa: E731
    at_the_mode = measure(white, inverse_mass_matrix=half).whitened
    np.testing.assert_allclose(at_the_mode.eigenvalues, 1.0, atol=0.15)
    assert 0.97 < at_the_mode.noise_share <= 1
    # |signal|^2 = 3 * 2^2 / 2, |noise|^2 = 3 / 2 + 3 / 2.
    share = measure(white, 2.0, inverse_mass_matrix=half).whitened.noise_share
    np.testing.assert_allclose(share, 1 / 3, rtol=0.08)


@pytest.mark.parametrize("scale", [1e-12, 1e10])
def test_log_densities_of_any_scale(scale):
    """Of the numbers without a unit none changes; float32 holds no fourth powers of the noise."""

    def summaries(factor):
        noise = blackjax_smile.gradient_noise(
            jax.random.key(0),
            lambda x, batch: jnp.asarray(factor, jnp.float32) * logdensity_fn(x, batch),
            {"w": jnp.full(3, 2.0)},
            normal,
            200,
        )
        return [summary._replace(eigenvalues=None) for summary in (noise.raw, noise.whitened)]

    found, expected = jax.tree.leaves(summaries(scale)), jax.tree.leaves(summaries(1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_excess_kurtosis():
    """A mean of 10 Laplace variables has a tenth of their excess of 3."""
    laplace = lambda key: jax.random.laplace(key, (10, 3))  # noqa: E731
    np.testing.assert_allclose(measure(normal).raw.excess_kurtosis, 0.0, atol=0.15)
    np.testing.assert_allclose(measure(laplace).raw.excess_kurtosis, 0.3, atol=0.2)


def test_more_parameters_than_draws():
    noise = measure(normal, num_draws=2)
    assert noise.raw.eigenvalues.shape == (2,)
    np.testing.assert_allclose(
        jnp.sum(noise.raw.eigenvalues), jnp.sum(measure(normal, num_draws=2).raw.eigenvalues)
    )


def test_bad_minibatches_are_left_out():
    def sometimes_nan(key):
        batch = normal(key)
        return batch.at[0].add(jnp.where(jax.random.uniform(key) < 0.1, jnp.nan, 0.0))

    noise = measure(sometimes_nan)
    assert 0.85 * N < noise.num_draws < 0.95 * N
    np.testing.assert_allclose(noise.raw.eigenvalues, SCALES**2, rtol=0.15)


def test_of_an_adapted_preconditioner():
    """The warmup's map whitens fresh noise at a place the chain has been to."""
    problem = LinearRegression(d=10, spread=30.0)
    minibatch_fn = problem.minibatch_fn(100)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, problem.logdensity_fn, minibatch_fn
    )
    (state, parameters), _ = warmup.run(jax.random.key(0), problem.mode, num_steps=2000)
    noise = blackjax_smile.gradient_noise(
        jax.random.key(1),
        problem.logdensity_fn,
        state.position,
        minibatch_fn,
        inverse_mass_matrix=parameters["inverse_mass_matrix"],
    )
    before, after = noise.raw.eigenvalues, noise.whitened.eigenvalues
    assert before[-1] / before[0] > 300
    assert after[-1] / after[0] < 4
    assert noise.whitened.noise_share > 0.5


def test_errors():
    with pytest.raises(ValueError, match="at least 2 draws"):
        measure(normal, num_draws=1)
    with pytest.raises(ValueError, match="must be even"):
        measure(lambda key: jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="for 4 parameters"):
        measure(normal, inverse_mass_matrix=jnp.ones(4))
