"""Ensembles: members are independent or pooled, and a failed one harms nobody."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.base import AdaptationAlgorithm

import blackjax_smile
from blackjax_smile import (
    EnsembleAdaptation,
    TrainedEnsemble,
    adapt_ensemble,
    drop_failed,
    prediction,
    sample_ensemble,
)
from blackjax_smile.ensemble import REASONS
from helpers import LinearRegression, assert_moments

pytestmark = pytest.mark.numerics

MODEL = LinearRegression(d=4, data_size=2000, spread=5.0)
MINIBATCH_FN = MODEL.minibatch_fn(100)
LOGDENSITY_FN = MODEL.logdensity_fn


@functools.cache  # the same one is compiled once
def warmup(logdensity_fn=LOGDENSITY_FN, **options):
    return blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, MINIBATCH_FN, **options
    )


def starts(num_chains=4, scale=0.1):
    noise = jax.random.normal(jax.random.key(7), (num_chains, 4))
    return MODEL.mode[None] + scale * noise


@pytest.mark.parametrize("pooled", [False, True])
def test_every_chain_samples_the_posterior(pooled):
    adapted = adapt_ensemble(jax.random.key(0), warmup(pooled=pooled), starts(), 1500)
    assert not np.any(adapted.failed)
    assert adapted.describe_failures() == []
    steps = np.unique(np.asarray(adapted.parameters["step_size"]))
    assert len(steps) == (1 if pooled else 4)
    factor = np.asarray(adapted.parameters["inverse_mass_matrix"].factor)
    assert np.all(factor[0] == factor[1]) == pooled
    _, (positions, infos) = sample_ensemble(
        jax.random.key(1), blackjax_smile.smile, LOGDENSITY_FN, MINIBATCH_FN, adapted, 1000, 10
    )
    mean, covariance = MODEL.posterior
    for draws in positions:
        assert_moments(draws, mean, np.diag(covariance), bias_mean=0.05, bias_variance=0.05)
    assert infos.deflection.shape == (4, 1000)
    # On target is the geometric mean of a running one: over eight seeds 0.274 +- 0.007.
    np.testing.assert_allclose(infos.deflection.mean(), 0.274, rtol=0.1)


@pytest.mark.parametrize("preconditioner", ["dense", "low_rank", "kronecker"])
def test_pooled_noise_is_that_of_all_chains(preconditioner):
    """Two minibatch laws, one chain each: the pooled map whitens their mean covariance.

    The noise is n ~ N(0, diag(1, v)) with v = 4 or 16, so the pooled variance of
    the second coordinate is 10 and each chain by itself would find its own.
    """

    def logdensity_fn(x, batch):
        noise = jnp.mean(batch, axis=0)
        scale = jnp.where(x["chain"][0] > 0, 4.0, 2.0)
        return (
            -0.5 * jnp.sum(x["w"] ** 2)
            + noise[0] * x["w"][0]
            + scale * noise[1] * x["w"][1]
            - 0.5 * jnp.sum((jnp.abs(x["chain"]) - 100) ** 2)
        )

    def minibatch_fn(key):
        return np.sqrt(100, dtype=np.float32) * jax.random.normal(key, (100, 2))

    sampler = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        logdensity_fn,
        minibatch_fn,
        preconditioner=preconditioner,
        pooled=True,
    )
    position = {"w": jnp.zeros((2, 2)), "chain": jnp.array([[100.0], [-100.0]])}
    adapted = adapt_ensemble(jax.random.key(0), sampler, position, num_steps=6000)
    F = jax.tree.map(lambda x: x[0], adapted.parameters["inverse_mass_matrix"])

    def variance(i):
        unit = {"w": jnp.zeros(2).at[i].set(1.0), "chain": jnp.zeros(1)}
        whitened = F.whiten(unit)
        return 1 / sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(whitened))

    # By itself a chain would find 4 or 16. 5 deviations of 5600 draws: 0.13; the rest is room
    # for Kronecker's floor, which draws the two variances together by at most 2 % here.
    np.testing.assert_allclose(variance(1) / variance(0), 10.0, rtol=0.15)


@pytest.mark.parametrize("pooled", [False, True])
def test_failed_members_are_reported_and_the_others_unharmed(pooled):
    """A chain that cannot start, and one whose log-density is finite at its start alone."""

    def logdensity_fn(x, batch):
        stuck = (x[0] > 50) & jnp.any(x != 100.0)
        return jnp.where(stuck, jnp.nan, LOGDENSITY_FN(x, batch))

    positions = starts(5).at[1].set(jnp.nan).at[3].set(100.0)
    adapted = adapt_ensemble(jax.random.key(0), warmup(logdensity_fn, pooled=pooled), positions)
    np.testing.assert_array_equal(adapted.failed, [False, True, False, True, False])
    assert adapted.reason[1] == REASONS.index(
        "the log-density or its gradient was not finite at the initial position"
    )
    # Steps shrink until they round to nothing: rejected, or accepted without a move.
    assert adapted.reason[3] in (
        REASONS.index("the position or an adapted parameter is not finite"),
        REASONS.index("nearly all steps of the last window were rejected"),
        REASONS.index("the position did not change"),
    )
    assert [line[:7] for line in adapted.describe_failures()] == ["chain 1", "chain 3"]

    sound = drop_failed(adapted)
    assert len(sound.failed) == 3
    assert not np.any(sound.failed)
    _, (draws, _) = sample_ensemble(
        jax.random.key(1), blackjax_smile.smile, LOGDENSITY_FN, MINIBATCH_FN, sound, 1000, 10
    )
    mean, covariance = MODEL.posterior
    for chain in draws:
        assert_moments(chain, mean, np.diag(covariance), bias_mean=0.05, bias_variance=0.05)


def test_a_failed_chain_changes_nothing_for_the_others():
    """Bit for bit, when each adapts by itself."""
    healthy = adapt_ensemble(jax.random.key(0), warmup(), starts(), 300)
    broken = adapt_ensemble(jax.random.key(0), warmup(), starts().at[2].set(jnp.nan), 300)
    for a, b in zip(
        jax.tree.leaves((healthy.state.position, healthy.parameters)),
        jax.tree.leaves((broken.state.position, broken.parameters)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.delete(a, 2, 0), np.delete(b, 2, 0))


def test_a_collapsed_step_size_is_a_failure():
    """One member's step size is 1e5 times smaller; L = inf, no refresh, is no failure."""
    real = warmup(preconditioner="diagonal")

    def run(rng_key, position, num_steps):
        (state, parameters), info = real.run(rng_key, position, num_steps)
        share = jnp.where(position[0] > MODEL.mode[0] + 1, 1e-5, 1.0)
        changed = {"step_size": share * parameters["step_size"], "L": jnp.full_like(share, jnp.inf)}
        return (state, {**parameters, **changed}), info

    positions = starts(4).at[1, 0].add(3.0)
    adapted = adapt_ensemble(jax.random.key(0), AdaptationAlgorithm(run), positions, 300)
    np.testing.assert_array_equal(adapted.failed, [False, True, False, False])
    assert adapted.describe_failures() == [f"chain 1: {REASONS[5]}"]
    assert "step size collapsed" in REASONS[5]


def summing(x, batch):
    X, y = batch
    return -0.5 * x @ x - 0.5 * 20 * jnp.sum((y - X @ x) ** 2)


def test_sampling_again_traces_nothing():
    traced = []

    def logdensity_fn(x, batch):
        traced.append(1)
        return LOGDENSITY_FN(x, batch)

    adapted = adapt_ensemble(jax.random.key(0), warmup(logdensity_fn), starts(2), 100)
    counts = []
    for seed in range(2):
        sample_ensemble(
            jax.random.key(seed), blackjax_smile.smile, logdensity_fn, MINIBATCH_FN, adapted, 3
        )
        counts.append(len(traced))
    assert counts[0] == counts[1]


def test_a_rejected_step_does_not_spoil_the_numbers_of_its_draw():
    """One row in 400 is missing: a draw of 20 steps on 20 rows each has a bad step in it."""
    X, y = MODEL.data
    missing = y.copy()
    missing[::400] = np.nan
    minibatch_fn = blackjax_smile.minibatch_sampler((X, missing), 20)
    adapted = adapt_ensemble(jax.random.key(0), warmup(), starts(), 300)
    _, (_, infos) = sample_ensemble(
        jax.random.key(1), blackjax_smile.smile, LOGDENSITY_FN, minibatch_fn, adapted, 100, 20
    )
    assert np.mean(infos.is_divergent > 0) > 0.3
    for name in ("logdensity", "energy_change", "kinetic_change", "deflection", "alignment"):
        assert np.all(np.isfinite(getattr(infos, name))), name
    # Draws of a single step: that of a rejected one has nothing to average.
    _, (_, infos) = sample_ensemble(
        jax.random.key(1), blackjax_smile.smile, LOGDENSITY_FN, minibatch_fn, adapted, 100
    )
    rejected = np.asarray(infos.is_divergent) > 0
    assert 0 < rejected.sum() < rejected.size
    np.testing.assert_array_equal(np.asarray(infos.deflection)[rejected], 0)
    assert np.all(np.asarray(infos.deflection)[~rejected] > 0)


def test_no_key_is_used_twice():
    """By JAX's own checker, which sees both branches of a conditional."""
    with jax.debug_key_reuse(True):
        adapted = adapt_ensemble(jax.random.key(0), warmup(), starts(2), 100)
        algorithm = blackjax_smile.smile(LOGDENSITY_FN, 1.0, 0.1)
        batch = MINIBATCH_FN(jax.random.key(3))
        step = jax.vmap(algorithm.step, (0, 0, None))
        states, _ = step(jax.random.split(jax.random.key(1), 2), adapted.state, batch)
        sample_fn = lambda key, x, row: x @ row + jax.random.normal(key)  # noqa: E731
        draws = prediction.posterior_predictive(
            jax.random.key(2),
            sample_fn,
            jnp.tile(states.position[:, None], (1, 20, 1)),
            jnp.ones((9, 4)),
            batch_size=4,
        )
    assert np.all(np.isfinite(draws))


def test_a_sum_over_the_minibatch_is_an_error():
    with pytest.raises(ValueError, match="must average over the rows"):
        adapt_ensemble(jax.random.key(0), warmup(summing), starts(2), num_steps=100)
    # Under jit no error can be raised.
    adapted = jax.jit(lambda x: adapt_ensemble(jax.random.key(0), warmup(summing), x, 100))(
        starts(2)
    )
    assert adapted.describe_failures() == [f"chain {i}: {REASONS[6]}" for i in (0, 1)]
    assert "sums over its minibatch" in REASONS[6]


def test_errors():
    with pytest.raises(ValueError, match="adaptation of all chains failed: chain 0"):
        drop_failed(
            adapt_ensemble(jax.random.key(0), warmup(), jnp.full((4, 4), jnp.nan), num_steps=300)
        )
    with pytest.raises(ValueError, match="pooled warmup runs all chains at once"):
        warmup(pooled=True).run(jax.random.key(0), MODEL.mode, num_steps=300)
    with pytest.raises(ValueError, match="pooled=True needs a minibatch_fn"):
        blackjax_smile.smile_adaptation(blackjax_smile.smile, LOGDENSITY_FN, [], pooled=True)
    with pytest.raises(ValueError, match="Every leaf of positions needs one leading axis"):
        adapt_ensemble(jax.random.key(0), warmup(), {"a": jnp.ones((2, 2)), "b": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="warmup must be what smile_adaptation"):
        adapt_ensemble(jax.random.key(0), blackjax_smile.smile, starts(2))
    with pytest.raises(ValueError, match="got TrainedEnsemble: pass its positions"):
        adapt_ensemble(jax.random.key(0), warmup(), TrainedEnsemble(starts(2), *[None] * 4))
    with pytest.raises(ValueError, match=r"rng_key must be .* jax.random.key\(0\); got 0"):
        adapt_ensemble(0, warmup(), starts(2))
    full_batch = blackjax_smile.smile_adaptation(blackjax_smile.smile, lambda x: -0.5 * x @ x)
    with pytest.raises(ValueError, match="needs a warmup on minibatches"):
        adapt_ensemble(jax.random.key(0), full_batch, starts(2), num_steps=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"num_samples": 2.0}, "num_samples must be an integer"),
        ({"thinning": -1}, "thinning must be an integer of at least 1, got -1"),
        ({"thinning": 2.5}, "thinning must be an integer"),
        ({"adaptation": {"position": jnp.zeros((2, 4))}}, "the whole of what .* got a dict"),
        ({"rng_key": 0}, "rng_key must be one key"),
    ],
)
def test_sampling_of_what_is_wrong(options, message):
    adaptation = EnsembleAdaptation(None, {}, None, np.zeros(2, bool), np.zeros(2, int))
    sound = {"rng_key": jax.random.key(0), "adaptation": adaptation, "num_samples": 3}
    model = {"logdensity_fn": LOGDENSITY_FN, "minibatch_fn": MINIBATCH_FN}
    with pytest.raises(ValueError, match=message):
        sample_ensemble(algorithm=blackjax_smile.smile, **model, **sound | options)
