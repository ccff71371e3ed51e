"""The paper's tuner run during the warmup, then frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from helpers import LinearRegression, assert_moments, sample

pytestmark = pytest.mark.numerics

PROBLEM = LinearRegression()


def test_posterior():
    """Right moments with the frozen step size."""
    mean, covariance = PROBLEM.posterior
    minibatch_fn = PROBLEM.minibatch_fn(200)
    draws, infos, parameters, info = sample(
        PROBLEM.logdensity_fn, minibatch_fn, PROBLEM.mode, 2000, 20_000, tuner="energy_variance"
    )
    assert_moments(draws, mean, np.diag(covariance), 0.05, 0.1)
    assert jnp.mean(infos.is_divergent) < 0.01
    # Between the ends of windows, where the map changes, by 2 % or not at all.
    changes = np.asarray(info.steps.step_size[1:] / info.steps.step_size[:-1])
    inside = np.delete(changes, np.cumsum(info.schedule.windows)[:-1] - 1)
    assert set(np.round(inside, 4)) == {np.float32(0.98), np.float32(1.0), np.float32(1.02)}
    assert np.all((info.windows.deflection > 0.05) & (info.windows.deflection < 1))
    np.testing.assert_allclose(parameters["step_size"], info.windows.step_size[-1])


def test_unknown_tuner():
    with pytest.raises(ValueError, match=r"tuner must be one of \('deflection', 'energy_variance'"):
        blackjax_smile.smile_adaptation(
            blackjax_smile.smile, PROBLEM.logdensity_fn, PROBLEM.minibatch_fn(10), tuner="paper"
        )


def test_traced():
    """Under jit and vmap, as the default."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        PROBLEM.logdensity_fn,
        PROBLEM.minibatch_fn(10),
        tuner="energy_variance",
        preconditioner="diagonal",
    )
    keys = jax.random.split(jax.random.key(0), 2)
    (_, parameters), _ = jax.vmap(lambda key: warmup.run(key, PROBLEM.mode, num_steps=100))(keys)
    assert parameters["step_size"].shape == (2,)
    assert jnp.all(parameters["step_size"] > 0)
