"""Columns of any scale: a raw table, whose numbers are in the units it came with."""

import blackjax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from helpers import assert_moments, sample

pytestmark = pytest.mark.numerics

NUM_ROWS = 20_000


def raw_table(scales, rare=0.0):
    """Return a linear regression's rows, its scales, and the mean and variance of its posterior.

    The columns are independent of each other, the last one is zero but in a share of ``rare`` rows.
    The prior is as wide as the likelihood would be after one row.
    """
    rng = np.random.default_rng(0)
    scales = np.asarray(scales)
    X = rng.normal(size=(NUM_ROWS, len(scales)))
    if rare:
        X[:, -1] = rng.uniform(size=NUM_ROWS) < rare
    y = X @ rng.normal(size=len(scales)) + rng.normal(size=NUM_ROWS)
    X = (X * scales).astype(np.float32)
    precision = X.T.astype(np.float64) @ X + np.diag(scales**2)
    covariance = np.linalg.inv(precision)
    data = jnp.asarray(X), jnp.asarray(y, jnp.float32)
    return data, scales, covariance @ (X.T.astype(np.float64) @ y), np.diag(covariance)


FAR_APART, RARE = ([1e3, 1, 1, 1, 1, 1e-4], 0.0), ([1e2, 1, 1, 1, 1, 1e-2], 0.003)


@pytest.mark.parametrize(
    ("preconditioner", "scales", "rare"),
    [
        ("auto", *FAR_APART),
        ("diagonal", *RARE),
        ("low_rank", *FAR_APART),
        ("kronecker", *RARE),
    ],
)
def test_raw_table(preconditioner, scales, rare):
    """From zero, about a hundred deviations away, nothing set.

    While the floor was one for all, the column of small numbers had not arrived by the end of the
    warmup, and had 10 effective draws of what others had 300.
    """
    data, scales, mean, variance = raw_table(scales, rare)
    assert np.max(np.abs(mean) / np.sqrt(variance)) > 80
    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda w: -0.5 * jnp.sum((w * scales) ** 2),
        lambda w, row: -0.5 * (row[1] - row[0] @ w) ** 2,
        NUM_ROWS,
    )
    draws, *_ = sample(
        logdensity_fn,
        blackjax_smile.minibatch_sampler(data, 200),
        jnp.zeros(len(scales)),
        2000,
        30_000,
        preconditioner=preconditioner,
    )
    assert_moments(draws, mean, variance, 0.05, 0.05)
