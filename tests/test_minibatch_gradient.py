import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blackjax_smile.minibatch_gradient import (
    anisotropy,
    init_isotropy,
    split_minibatch,
    takes_minibatch,
    update_isotropy,
    value_and_grad,
)
from helpers import LinearRegression

pytestmark = pytest.mark.numerics

PROBLEM = LinearRegression()


@pytest.mark.parametrize("num_parts", [2, 4])
def test_split_gradient_is_the_minibatch_gradient(num_parts):
    batch = PROBLEM.minibatch_fn(20)(jax.random.key(0))
    position = PROBLEM.mode + 0.1
    (whole, none), grad = value_and_grad(PROBLEM.logdensity_fn, batch)(position)
    gradient_fn = value_and_grad(PROBLEM.logdensity_fn, batch, num_parts)
    (mean, split), split_grad = gradient_fn(position)
    assert none is None
    assert split.noise.shape == (num_parts - 1, *position.shape)
    np.testing.assert_allclose(mean, whole, rtol=1e-5)
    np.testing.assert_allclose(split_grad, grad, rtol=1e-3)
    np.testing.assert_array_equal(split.mean, split_grad)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_noise_has_the_covariance_of_the_gradient_and_no_signal(num_parts):
    """Far from the mode the signal is large, and must cancel: errors at 5 sigma."""
    n, position = 20_000, PROBLEM.mode + 0.5
    minibatch_fn = PROBLEM.minibatch_fn(20)

    def draw(key):
        gradient_fn = value_and_grad(PROBLEM.logdensity_fn, minibatch_fn(key), num_parts)
        (_, split), grad = gradient_fn(position)
        return grad, split.noise

    grads, noise = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), n))
    grads, noise = np.asarray(grads, np.float64), np.asarray(noise, np.float64)
    sd = grads.std(0)
    # Twice the error of a covariance of normals, for the tails of the products.
    allowed = 4 * 5 * np.outer(sd, sd) / np.sqrt(n)
    for i in range(num_parts - 1):
        draws = noise[:, i]
        np.testing.assert_array_less(np.abs(draws.mean(0)), 5 * sd / np.sqrt(n))
        np.testing.assert_array_less(np.abs(np.cov(draws.T) - np.cov(grads.T)), allowed)
        for j in range(i):
            np.testing.assert_array_less(np.abs(draws.T @ noise[:, j]) / n, allowed)


def test_split_takes_alternate_rows():
    halves = split_minibatch({"x": jnp.arange(6), "y": jnp.zeros((6, 2))})
    np.testing.assert_array_equal(halves["x"], [[0, 2, 4], [1, 3, 5]])
    assert halves["y"].shape == (2, 3, 2)
    quarters = split_minibatch(jnp.arange(8), 4)
    np.testing.assert_array_equal(quarters, [[0, 4], [1, 5], [2, 6], [3, 7]])
    with pytest.raises(ValueError, match="multiple of 4; got 6"):
        split_minibatch(jnp.arange(6), 4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (jnp.zeros(3), "must be even; got 3"),
        (jnp.zeros(0), "must be even; got 0"),
        ((jnp.zeros(2), jnp.zeros(4)), "common leading axis"),
        ((jnp.zeros(2), jnp.zeros(())), "common leading axis"),
        ({}, "common leading axis"),
    ],
)
def test_minibatches_that_cannot_be_split(batch, message):
    with pytest.raises(ValueError, match=message):
        split_minibatch(batch)


def test_takes_minibatch():
    assert takes_minibatch(lambda position, minibatch: 0.0)
    assert not takes_minibatch(lambda position: 0.0)
    assert not takes_minibatch(lambda position, temperature=1.0: 0.0)
    assert takes_minibatch(jax.jit(lambda position, minibatch: 0.0))
    assert takes_minibatch(lambda *arguments: 0.0)


def test_a_logdensity_of_other_arguments_is_an_error():
    with pytest.raises(ValueError, match=r"called as logdensity_fn\(position, minibatch\) here"):
        value_and_grad(lambda x: -x @ x, jnp.zeros((4, 2)))(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"but its arguments are \(x, batch\)"):
        value_and_grad(lambda x, batch: -x @ x)(jnp.zeros(2))


@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("spread", [1.0, 4.0, 25.0])
def test_anisotropy(spread, scale, num_draws):
    """The relative deviation of the eigenvalues, whatever their mean."""
    d, n = 10, 20_000
    eigenvalues = scale * spread ** np.linspace(-0.5, 0.5, d)
    root = jnp.asarray(np.sqrt(eigenvalues)[None], jnp.float32)

    def body(moments, key):
        return update_isotropy(moments, root * jax.random.normal(key, (num_draws, d))), None

    moments, _ = jax.lax.scan(
        body, init_isotropy(jnp.zeros(d), num_draws), jax.random.split(jax.random.key(0), n)
    )
    mean, a, significant = anisotropy(moments)
    np.testing.assert_allclose(mean, np.mean(eigenvalues), rtol=0.05)
    exact = np.std(eigenvalues) / np.mean(eigenvalues)
    # With one draw t_2 has a relative standard error of about 2 / sqrt(n): 5 of them,
    # and sqrt(3) times fewer with three (their nine pairs are not all independent).
    error = 2 / np.sqrt(n * num_draws)
    np.testing.assert_allclose(a**2, exact**2, atol=5 * error * (1 + exact**2))
    assert significant <= a


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_anisotropy_in_a_million_dimensions(scale):
    """Noise of any strength: float32 holds the squares of squared norms of its vectors."""
    root = jnp.where(jnp.arange(1_000_000) < 10_000, 10.0, 1.0)[None]

    def found(scale):
        def body(moments, key):
            noise = scale * root * jax.random.normal(key, root.shape)
            return update_isotropy(moments, noise), None

        keys = jax.random.split(jax.random.key(0), 8)
        return anisotropy(jax.lax.scan(body, init_isotropy(root[0]), keys)[0])

    mean, a, significant = found(scale)
    expected = found(1.0)
    np.testing.assert_allclose(mean / scale**2, expected[0], rtol=1e-4)
    np.testing.assert_allclose(expected[0], 1.99, rtol=0.01)  # one in a hundred of variance 100
    np.testing.assert_allclose((a, significant), expected[1:], rtol=1e-4)
    # a^2 is 24.5, known to a factor of 3 or so from seven pairs.
    assert 1 < significant < a < 10


@pytest.mark.parametrize("num_draws", [1, 3])
@pytest.mark.parametrize("df", [3.0, np.inf])
def test_a_short_window_of_white_noise_shows_no_anisotropy(df, num_draws):
    """400 windows of 200 minibatches: at most 8 % of them beyond two standard errors.

    Of normal noise 3 to 4 % are (the law is skewed): a false alarm in fewer than 1e-4 of
    the runs. Heavy-tailed noise has fewer pairs that count, and an error bar that knows.
    """
    d, n = 10, 200

    def window(key):
        def body(moments, key):
            noise_key, scale_key = jax.random.split(key)
            scale = 1.0 if np.isinf(df) else jax.random.chisquare(scale_key, df) ** -0.5
            noise = scale * jax.random.normal(noise_key, (num_draws, d))
            return update_isotropy(moments, noise), None

        moments = init_isotropy(jnp.zeros(d), num_draws)
        return anisotropy(jax.lax.scan(body, moments, jax.random.split(key, n))[0])

    _, raw, significant = jax.vmap(window)(jax.random.split(jax.random.key(0), 400))
    assert np.mean(np.asarray(raw) > 0) > 0.3
    assert np.mean(np.asarray(significant) > 0) < 0.08
