"""Effects that all start at zero, whose scale is to be learnt: no trap for the first steps."""

import blackjax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.adaptation.restraint import HELD, initial_restraint
from helpers import assert_moments, sample

pytestmark = pytest.mark.numerics

NUM_GROUPS, GROUP_SIZE = 400, 10


def as_leaves(x):
    return x


def from_vector(x):
    """Return mean and log-scale, which one vector has behind the effects."""
    return {"effects": x[..., :-2], "mean": x[..., -2], "log_scale": x[..., -1]}


LEAVES = {"effects": jnp.zeros(NUM_GROUPS), "mean": jnp.zeros(()), "log_scale": jnp.zeros(())}
POSITIONS = {"leaves": (LEAVES, as_leaves), "vector": (jnp.zeros(NUM_GROUPS + 2), from_vector)}


def make_rows():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(NUM_GROUPS, dtype=np.int32), GROUP_SIZE)
    effects = 1 + 0.5 * rng.normal(size=NUM_GROUPS)
    return (effects[group] + rng.normal(size=len(group))).astype(np.float32), group


def logprior_fn(x):
    z = (x["effects"] - x["mean"]) * jnp.exp(-x["log_scale"])
    of_effects = jnp.sum(-0.5 * z**2 - x["log_scale"])
    return of_effects - 0.5 * x["mean"] ** 2 - 0.5 * x["log_scale"] ** 2


def loglikelihood_fn(x, row):
    value, group = row
    return -0.5 * (value - x["effects"][group]) ** 2


def exact_moments(values):
    """Mean and variance of (mean, log-scale) by quadrature: the groups' means are normal."""
    means = values.reshape(NUM_GROUPS, GROUP_SIZE).mean(axis=1, dtype=np.float64)
    mean, log_scale = np.meshgrid(np.linspace(0.7, 1.3, 301), np.linspace(-1.2, -0.2, 301))
    variance = np.exp(2 * log_scale) + 1 / GROUP_SIZE
    squares = NUM_GROUPS * (means.var() + (means.mean() - mean) ** 2)
    logdensity = -0.5 * (
        NUM_GROUPS * np.log(variance) + squares / variance + mean**2 + log_scale**2
    )
    weights = np.exp(logdensity - logdensity.max())
    points = np.stack([mean.ravel(), log_scale.ravel()])
    centre = np.average(points, axis=1, weights=weights.ravel())
    return centre, np.average((points - centre[:, None]) ** 2, axis=1, weights=weights.ravel())


@pytest.mark.parametrize(
    ("shape", "preconditioner"),
    [("leaves", "diagonal"), ("leaves", "kronecker"), ("leaves", "dense"), ("vector", "dense")],
)
def test_the_scale_of_effects_from_zero(shape, preconditioner):
    """Before it waited for the effects, the scale fell with them: 3 to 14 effective draws.

    Allowed bias: 0.05 posterior deviations in means, 5 % in variances.
    """
    rows = make_rows()
    position, parts = POSITIONS[shape]
    draws, infos, *_ = sample(
        blackjax.sgmcmc.gradients.logdensity_estimator(
            lambda x: logprior_fn(parts(x)),
            lambda x, row: loglikelihood_fn(parts(x), row),
            len(rows[0]),
        ),
        blackjax_smile.minibatch_sampler(rows, 200),
        position,
        *(2000, 10_000),
        preconditioner=preconditioner,
    )
    found = np.column_stack([parts(draws)["mean"], parts(draws)["log_scale"]])
    assert_moments(found, *exact_moments(rows[0]), 0.05, 0.05)
    assert not jnp.any(infos.is_divergent)


def test_what_waits_in_the_first_window():
    """What has a gradient beyond the typical noise and none itself; numbers of vectors alone."""
    variance = {
        "vector": jnp.array([1.0, 0, 0]),
        "matrix": jnp.zeros((2, 2)),
        "scale": jnp.zeros(()),
    }
    grad = {
        "vector": jnp.array([9.0, 9.0, 0.5]),
        "matrix": jnp.full((2, 2), 9.0),
        "scale": jnp.ones(()),
    }
    found = initial_restraint(variance, jnp.array(4.0), grad)
    np.testing.assert_allclose(found["vector"], [1, HELD, 1])
    assert found["matrix"] == np.float32(HELD)
    assert found["scale"] == 1
    partly = initial_restraint({"matrix": jnp.eye(2)}, jnp.array(4.0), {"matrix": grad["matrix"]})
    assert partly["matrix"] == 1
