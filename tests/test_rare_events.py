"""Parameters that few rows inform: effects of small groups, embeddings, rare categories."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile.preconditioners.rare_events import (
    NUM_EVENTS,
    NUM_OWN_EVENTS,
    missed_variance,
    num_present,
)

pytestmark = pytest.mark.numerics


def missed(noise):
    """Return what a window of draws, leading axis, may have missed; one leaf."""
    present = sum(num_present(draw) for draw in noise)
    return missed_variance(jnp.asarray(float(len(noise))), jnp.mean(noise**2, axis=0), present)


def test_a_parameter_that_was_not_seen_gets_some_events():
    """Of four parameters with an event of square 9 in every tenth draw, one has had none."""
    noise = np.zeros((100, 4), np.float32)
    noise[::10, 0] = noise[1::10, 1] = noise[2::10, 2] = 3.0
    expected = NUM_EVENTS * (1 - 0.1) * 9.0 / len(noise)
    np.testing.assert_allclose(missed(jnp.asarray(noise)), expected, rtol=1e-5)


def test_a_parameter_that_was_seen_often_shows_its_own_events():
    """Of three, one has events a million times smaller, one has missed none; one has seen few."""
    noise = np.zeros((100, 3), np.float32)
    noise[::5, 0] = 3e-3
    noise[:, 1] = 3.0
    noise[:4, 2] = 3e-3
    variance, counts = jnp.mean(noise**2, axis=0), jnp.sum(noise != 0, axis=0).astype(jnp.float32)
    e = missed_variance(jnp.asarray(100.0), variance, counts)
    of_the_leaf = missed_variance(jnp.asarray(100.0), variance, jnp.sum(counts))
    np.testing.assert_allclose(e[0], NUM_OWN_EVENTS * 0.8 * 9e-6 / 100, rtol=1e-5)
    assert e[1] == 0
    np.testing.assert_allclose(e[2], of_the_leaf, rtol=1e-6)


@pytest.mark.parametrize("num_draws", [37, 1100, 3300, 49_999])
def test_a_parameter_with_noise_in_every_draw_has_missed_none(num_draws):
    """Exactly, as its share of ten thousand in the floor would make a rounding error into noise."""
    n = jnp.asarray(float(num_draws))
    variance, counts = jnp.asarray([1e12, 1.0]), jnp.stack([n, jnp.floor(n / 2)])
    e = jax.jit(jax.vmap(missed_variance))(n[None], variance[None], counts[None])
    assert e[0, 0] == 0
    assert e[0, 1] > 0


@pytest.mark.parametrize("num_draws", [100, 20_000])
def test_where_every_row_counts_nothing_was_missed(num_draws):
    """A column of zeros never has noise; scales far apart must not turn round-off into some."""
    scales = jnp.asarray([*[1.0] * 17, 1e6, 1e-6, 0.0])
    noise = scales[None] * jax.random.normal(jax.random.key(0), (100, len(scales)))
    share = num_present(noise[0])
    present = jax.lax.fori_loop(0, num_draws, lambda _, total: total + share, 0.0)
    e = missed_variance(jnp.asarray(float(num_draws)), jnp.mean(noise**2, axis=0), present)
    assert e == 0


def test_no_noise_at_all_is_none():
    assert missed(jnp.zeros((5, 3))) == 0


class Groups:
    """Independent effects of groups of a few rows: the posterior is normal, and known."""

    num_groups, rows_per_group = 500, 5

    def __init__(self):
        rng = np.random.default_rng(0)
        sizes = np.maximum(rng.poisson(self.rows_per_group, self.num_groups), 2)
        group = np.repeat(np.arange(self.num_groups), sizes)
        effects = rng.normal(size=self.num_groups)
        y = (effects[group] + rng.normal(size=len(group))).astype(np.float32)
        self.data = jnp.asarray(y), jnp.asarray(group)
        self.variance = 1 / (1 + sizes)
        self.mean = self.variance * np.bincount(group, y, self.num_groups)

    def logdensity_fn(self, position, minibatch):
        y, group = minibatch
        loglikelihood = -0.5 * (y - position.reshape(-1)[group]) ** 2
        logprior = -0.5 * jnp.sum(position**2)
        return logprior + len(self.data[0]) * jnp.mean(loglikelihood)


@pytest.mark.parametrize("preconditioner", ["diagonal", "kronecker"])
def test_effects_of_small_groups(preconditioner):
    """A minibatch of 50 rows says nothing of nine groups in ten.

    With the errors of 500 independent parameters averaged, what is allowed is bias alone: 5 % of
    the mean variance (the noise depends on the effects themselves). Before the floor held
    events that were missed, the diagonal map gave a mean ratio above 1.5 and an ESS of 2.
    """
    problem = Groups()
    start = jnp.zeros((4, problem.num_groups, 1))
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        problem.logdensity_fn,
        blackjax_smile.minibatch_sampler(problem.data, batch_size=50),
        preconditioner=preconditioner,
    )
    adapted = blackjax_smile.adapt_ensemble(jax.random.key(0), warmup, start, num_steps=2000)
    _, (positions, _) = blackjax_smile.sample_ensemble(
        jax.random.key(1),
        blackjax_smile.smile,
        problem.logdensity_fn,
        blackjax_smile.minibatch_sampler(problem.data, batch_size=50),
        adapted,
        num_samples=250,
        thinning=25,
    )
    draws = positions[..., 0]
    z2 = (np.mean(draws, axis=(0, 1)) - problem.mean) ** 2 / problem.variance
    ratio = np.var(draws, axis=(0, 1)) / problem.variance
    ess = np.asarray(blackjax.ess(draws))
    assert np.min(ess) > 50
    assert np.mean(z2) < 3 * np.mean(1 / ess)
    assert abs(np.mean(ratio) - 1) < 0.05
    assert np.max(ratio) < 4
