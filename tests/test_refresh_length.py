"""The refresh length and the share of the deflection: against exact results, and what they cure."""

import itertools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.adaptation import refresh_length
from helpers import SIGMAS, LinearRegression

pytestmark = pytest.mark.numerics


def test_whitened_path():
    """Length and spread of a path made of known momenta."""
    rng = np.random.default_rng(0)
    momenta = rng.normal(size=(101, 3)).astype(np.float32)
    path = refresh_length.init_path(jnp.zeros(3))
    for u, v in itertools.pairwise(momenta):
        path = refresh_length.update_path(path, jnp.asarray(u), jnp.asarray(v), jnp.asarray(0.2))
    y = np.cumsum(0.1 * (momenta[:-1] + momenta[1:]), axis=0)
    np.testing.assert_allclose(path.y, y[-1], rtol=1e-4)
    exact = np.sqrt(y.var(0, ddof=1).sum())
    np.testing.assert_allclose(refresh_length.natural_length(path), exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("natural", "noise", "anisotropy", "expected"),
    [
        (10.0, 100.0, 0.0, 1 / (1 / 15 - 0.01)),  # weak white noise: the posterior's own length
        (100.0, 10.0, 0.0, np.inf),  # strong white noise refreshes the momentum itself
        (100.0, 20.0, 0.2, 25.0),  # 20 / (4 * 0.2): it outweighs the anisotropy
        (100.0, 20.0, 2.0, 20 / 1.5),  # at most 1.5 times as much as the noise turns
        (0.1, 20.0, 2.0, 0.4),  # never below four steps
        (np.nan, 20.0, np.nan, np.inf),  # nothing known
        (0.0, 20.0, 0.25, 20.0),  # a chain that did not move says nothing
    ],
)
def test_length(natural, noise, anisotropy, expected):
    args = map(jnp.asarray, (natural, noise, anisotropy, 0.1))
    np.testing.assert_allclose(refresh_length.choose_length(*args), expected, rtol=1e-6)


def test_length_while_searching():
    """Less of a refresh makes a faster chain: the noise turns it within 2.5 of its lengths."""
    args = map(jnp.asarray, (100.0, 20.0, 2.0, 0.1))
    L = refresh_length.choose_length(*args, refresh_length.MAX_SEARCHING_REFRESH)
    np.testing.assert_allclose(L, 50.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("natural", "noise", "diffusive", "expected"),
    [
        (10.0, 100.0, 500.0, 1.0),  # weak noise: every step counts
        (100.0, 50.0, 500.0, 0.5),  # strong noise turns the momentum twice as often as need be
        (1e6, 1.0, 1e6, 0.1),  # a tenth at most
        (100.0, 50.0, 80.0, 0.5),  # as far as a walk may go by chance
        (100.0, 50.0, 60.0, 1.0),  # too far for a walk: on its way
        (np.nan, 1.0, 1.0, 1.0),  # nothing known
        (0.0, 1.0, 1.0, 1.0),  # a chain that did not move says nothing
        (0.0, np.nan, np.nan, 1.0),
    ],
)
def test_deflection_share(natural, noise, diffusive, expected):
    share = refresh_length.deflection_share(*map(jnp.asarray, (natural, noise, diffusive)))
    np.testing.assert_allclose(share, expected, rtol=1e-6)


def test_diffusive_length():
    """The spread of walks at unit speed whose direction is forgotten over a known length.

    20 walks in 50 dimensions: the sum of 1000 nearly independent variances, each with a relative
    deviation of 0.9; five standard errors are 14 %, the correction for a direction that
    persists over 1/100 of the walk is 2 %.
    """
    L, step_size, d = 2.0, jnp.asarray(0.5), 50
    keep = jnp.exp(-step_size / L)

    @jax.vmap
    def spread(rng_key):
        def step(carry, key):
            u, path = carry
            z = jax.random.normal(key, (d,)) / jnp.sqrt(d)
            new = keep * u + jnp.sqrt(1 - keep**2) * z
            new /= jnp.linalg.norm(new)
            return (new, refresh_length.update_path(path, u, new, step_size)), None

        carry = jnp.eye(d)[0], refresh_length.init_path(jnp.zeros(d))
        (_, path), _ = jax.lax.scan(step, carry, jax.random.split(rng_key, 400))
        return refresh_length.natural_length(path), refresh_length.diffusive_length(
            path, step_size, L
        )

    lengths, expected = spread(jax.random.split(jax.random.key(0), 20))
    ratio = np.mean(np.asarray(lengths, np.float64) ** 2) / np.asarray(expected)[0] ** 2
    assert abs(ratio - 1) < 0.14


@pytest.mark.parametrize(
    ("natural", "diffusive", "expected"),
    [(100.0, 90.0, 0.2), (100.0, 50.0, 1.0), (10.0, 90.0, 1.0), (np.nan, 90.0, 1.0)],
)
def test_a_chain_on_its_way_keeps_its_deflection(natural, diffusive, expected):
    """A path twice as wide as diffusion makes it is the way, not the region."""
    share = refresh_length.deflection_share(*map(jnp.asarray, (natural, 20.0, diffusive)))
    np.testing.assert_allclose(share, expected)


class TestStrongNoise:
    """A standard normal law of five dimensions; noise of 800 times its precision.

    The noise is skewed, in all coordinates alike (Gamma laws of shape 1/4, skewness 4). Held at
    a deflection of 0.25 the mean of the sum over the coordinates is -0.62 +- 0.05 of its
    deviations.
    """

    DIMENSION = 5
    NUM_STEPS = 40_000

    @staticmethod
    def logdensity_fn(x, noise):
        return -0.5 * x @ x + jnp.mean(noise @ x)

    def minibatch_fn(self, rng_key):
        return 80 * (jax.random.gamma(rng_key, 0.25, (2, self.DIMENSION)) - 0.25)

    def warmup(self, **options):
        return blackjax_smile.smile_adaptation(
            blackjax_smile.smile, self.logdensity_fn, self.minibatch_fn, **options
        )

    def test_skewed_noise_does_not_shift_the_posterior(self):
        """Eight chains; the bias left may be 0.1 deviations on top of five standard errors."""
        warmup = self.warmup()

        @jax.jit
        @jax.vmap
        def chain(rng_key):
            start_key, warmup_key, run_key = jax.random.split(rng_key, 3)
            start = jax.random.normal(start_key, (self.DIMENSION,))
            (state, parameters), info = warmup.run(warmup_key, start, num_steps=2000)
            algorithm = blackjax_smile.with_minibatches(
                blackjax_smile.smile(self.logdensity_fn, **parameters), self.minibatch_fn
            )

            def step(state, key):
                state, _ = algorithm.step(key, state)
                return state, jnp.sum(state.position) / jnp.sqrt(self.DIMENSION)

            _, draws = jax.lax.scan(step, state, jax.random.split(run_key, self.NUM_STEPS))
            return draws, info.windows

        draws, windows = chain(jax.random.split(jax.random.key(0), 8))
        ess = blackjax.ess(draws)
        assert ess > 200
        draws = np.asarray(draws, np.float64)
        assert abs(np.mean(draws)) < 0.1 + SIGMAS / np.sqrt(ess)
        assert abs(np.var(draws) - 1) < SIGMAS * np.sqrt(2 / ess)

        targets = np.asarray(windows.target_deflection)
        assert np.all(targets[:, :-1] == 0.25)
        assert np.all(targets[:, -1] < 0.2)
        # The step size has followed its target.
        deflection = np.asarray(windows.deflection)[:, -1]
        np.testing.assert_allclose(deflection, targets[:, -1], rtol=0.3)

    def test_the_length_of_the_noise_is_the_natural_one_at_the_lowered_target(self):
        """Which is why the smaller step costs nothing; within what a window can tell."""
        _, info = self.warmup().run(jax.random.key(0), jnp.zeros(self.DIMENSION), num_steps=4000)
        windows = info.windows
        ratio = np.asarray(windows.noise_length / windows.natural_length)
        assert ratio[-2] < 0.7
        np.testing.assert_allclose(ratio[-1], 1, rtol=0.4)

    def test_the_tuner_of_the_paper_has_no_target_to_lower(self):
        _, info = self.warmup(tuner="energy_variance").run(
            jax.random.key(0), jnp.zeros(self.DIMENSION), num_steps=1000
        )
        assert np.all(np.asarray(info.windows.target_deflection) == 0.25)


@pytest.mark.parametrize("num_steps", [1500, 6000])
def test_natural_length_is_that_of_the_posterior(num_steps):
    """However long the warmup, and though refreshes turn the momentum most (little noise)."""
    problem = LinearRegression(d=20)
    logdensity_fn = blackjax_smile.control_variates(
        problem.logdensity_fn, problem.mode, problem.data
    )
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, problem.minibatch_fn(200), preconditioner="dense"
    )
    (_, parameters), info = warmup.run(jax.random.key(0), problem.mode, num_steps)
    F = np.asarray(parameters["inverse_mass_matrix"].factor, np.float64)
    whitened = np.linalg.solve(F, np.linalg.cholesky(problem.posterior[1]))
    # Its deviation over seeds is 0.07.
    np.testing.assert_allclose(info.windows.natural_length[-1], np.linalg.norm(whitened), rtol=0.25)
