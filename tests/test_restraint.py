"""Parameters that no row of the data touches: the mean of a hierarchy and the like."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blackjax_smile
from blackjax_smile import _tree
from blackjax_smile.adaptation.restraint import (
    NOISELESS_SHARE,
    init_moments,
    restraint,
    update_moments,
)
from blackjax_smile.minibatch_gradient import SplitGradient
from helpers import ESTIMATORS, assert_moments, sample

pytestmark = pytest.mark.numerics

STRUCTURED = [name for name in ESTIMATORS if name != "identity"]
POSITION = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "mean": jnp.ones(2)}
VARIANCE = {"kernel": 1.0, "bias": 1.0, "mean": 0.0}
SCALE = {**POSITION, "mean": 0.1 * POSITION["mean"]}


class Hierarchy:
    """Groups with a common mean, known variances: a normal posterior, stiff in the mean."""

    num_groups, group_size, spread = 30, 200, 0.05

    def __init__(self):
        rng = np.random.default_rng(0)
        G, m = self.num_groups, self.group_size
        means = 0.3 + self.spread * rng.normal(size=G)
        group = np.repeat(np.arange(G), m)
        self.data = (means[group] + rng.normal(size=G * m)).astype(np.float32), group
        prior = self.spread**-2
        precision = np.diag([*[m + prior] * G, G * prior + 1])
        precision[:-1, -1] = precision[-1, :-1] = -prior
        self.covariance = np.linalg.inv(precision)
        sums = np.bincount(group, weights=self.data[0])
        self.mean = self.covariance @ np.append(sums, 0)

    @property
    def logdensity_fn(self):
        return blackjax.sgmcmc.gradients.logdensity_estimator(
            lambda x: (
                -0.5 * jnp.sum((x["groups"] - x["mean"]) ** 2) / self.spread**2
                - 0.5 * x["mean"] ** 2
            ),
            lambda x, row: -0.5 * (row[0] - x["groups"][row[1]]) ** 2,
            len(self.data[0]),
        )


@pytest.mark.parametrize("preconditioner", ["dense", "diagonal", "kronecker", "low_rank"])
def test_a_stiff_hyperparameter_from_zero(preconditioner):
    """Moved as freely as the floor lets it, the mean made the chains 60 times slower and wrong.

    Allowed bias: 0.05 posterior deviations in means, 5 % in variances.
    """
    problem = Hierarchy()
    position = {"groups": jnp.zeros(problem.num_groups), "mean": jnp.zeros(())}
    minibatch_fn = blackjax_smile.minibatch_sampler(problem.data, 60)
    draws, infos, *_ = sample(
        problem.logdensity_fn, minibatch_fn, position, 2000, 20_000, preconditioner=preconditioner
    )
    flat = np.concatenate([draws["groups"], draws["mean"][:, None]], axis=1)
    assert_moments(flat, problem.mean, np.diag(problem.covariance), 0.05, 0.05)
    assert not jnp.any(infos.is_divergent)


def test_means_in_different_units_in_one_vector():
    """The kronecker map restrains them number by number; as a whole it left 6 effective draws.

    Two outcomes of the same groups, the second in units of 1/1000. Allowed bias as above.
    """
    problem = Hierarchy()
    units = np.array([1, 1000], np.float32)
    values, group = problem.data
    rows = np.column_stack([values, values[::-1]]), np.column_stack([group, group[::-1]])
    spread = problem.spread

    def logprior(x):
        groups = jnp.sum(((x["groups"] - x["mean"][None]) / units[None]) ** 2)
        return -0.5 * groups / spread**2 - 0.5 * jnp.sum((x["mean"] / units) ** 2)

    def loglikelihood(x, row):
        values, group = row
        return -0.5 * jnp.sum((values - x["groups"][group, jnp.arange(2)] / units) ** 2)

    draws, infos, *_ = sample(
        blackjax.sgmcmc.gradients.logdensity_estimator(logprior, loglikelihood, len(values)),
        blackjax_smile.minibatch_sampler(rows, 60),
        {"groups": jnp.zeros((problem.num_groups, 2)), "mean": jnp.zeros(2)},
        *(2000, 20_000),
        preconditioner="kronecker",
    )
    for k, unit in enumerate(units):
        flat = np.column_stack([draws["groups"][..., k], draws["mean"][:, k]]) / unit
        assert_moments(flat, problem.mean, np.diag(problem.covariance), 0.05, 0.05)
    assert not jnp.any(infos.is_divergent)


def restrained(name):
    """Return a map fitted to noise that leaves one leaf out, and the same map restrained."""
    estimator = ESTIMATORS[name](POSITION)
    preconditioner = estimator.init(jax.tree.map(jnp.full_like, POSITION, VARIANCE))
    statistics = estimator.init_statistics(preconditioner)
    for key in jax.random.split(jax.random.key(0), 50):
        noise = jax.tree.map(jnp.multiply, _tree.random_normals(key, POSITION), VARIANCE)
        statistics = estimator.update(statistics, noise, preconditioner.whiten(noise))
    fitted = estimator.fit(statistics, preconditioner)
    return estimator, statistics, fitted, estimator.restrain(fitted, SCALE)


@pytest.mark.parametrize("name", STRUCTURED)
class TestMap:
    def test_moves_less_and_whitens_as_it_moves(self, name):
        _, _, fitted, less = restrained(name)
        key, other_key = jax.random.split(jax.random.key(1))
        u, g = (_tree.random_normals(k, POSITION) for k in (key, other_key))
        moved = jax.tree.map(jnp.multiply, SCALE, fitted.to_position(u))
        for x, y in zip(*map(jax.tree.leaves, (moved, less.to_position(u))), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            _tree.vdot(less.whiten(g), u), _tree.vdot(g, less.to_position(u)), rtol=1e-4
        )

    def test_the_whitened_complement_stays(self, name):
        _, _, fitted, less = restrained(name)
        arguments = jax.random.key(2), POSITION, jnp.zeros(()), jnp.ones(()), _tree.random_normals
        before, after = (p.refresh_noise(*arguments) for p in (fitted, less))
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(less.complement_trace, fitted.complement_trace, rtol=1e-5)

    def test_the_next_fit_forgets_it(self, name):
        estimator, statistics, fitted, less = restrained(name)
        u = _tree.random_normals(jax.random.key(3), POSITION)
        again = [estimator.fit(statistics, p).to_position(u) for p in (fitted, less)]
        for x, y in zip(*map(jax.tree.leaves, again), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


WITHOUT, WITH = ((jnp.asarray(flag), jnp.asarray(1.0)) for flag in (False, True))


def moments_of(num_steps=2000, vector_limit=0, scales=(7.0, 7.0), offset=0.0):
    """Gradients of deviation 7, no noise in one leaf, which the map stretches by 2.

    The whitened curvatures there are the squares of twice ``scales``, and ``offset`` is a constant
    part of the gradient, as on the way to the posterior. The momenta are independent.
    """
    moments = init_moments(POSITION, vector_limit)
    scales, position = 2 * jnp.asarray(scales), jnp.zeros(2)
    momentum = _tree.random_normals(jax.random.key(1), POSITION)

    def step(carry, key):
        moments, position, momentum = carry
        grad_key, noise_key, key = jax.random.split(key, 3)
        grad = jax.tree.map(lambda x: 7 * x, _tree.random_normals(grad_key, POSITION))
        noise = jax.tree.map(
            lambda v, n: 1e-3 * v * n[None], VARIANCE, _tree.random_normals(noise_key, POSITION)
        )
        position += 0.1 * momentum["mean"]
        wide = grad["mean"] / 7 * scales if offset == 0 else -(scales**2) * position + offset
        whitened = {**grad, "mean": wide}
        after = _tree.random_normals(key, POSITION)
        moments = update_moments(
            moments,
            SplitGradient({**grad, "mean": wide / 2}, noise),
            whitened,
            (momentum, after),
            jnp.asarray(0.1),
            jnp.asarray(True),
            vector_limit,
        )
        return (moments, position, after), None

    keys = jax.random.split(jax.random.key(0), num_steps)
    (moments, _, _), _ = jax.lax.scan(step, (moments, position, momentum), keys)
    return moments


def ones_like(moments):
    return jax.tree.map(jnp.ones_like, moments.square)


def test_restraint_is_for_leaves_without_noise_alone():
    moments = moments_of()
    stretch = {"kernel": jnp.asarray(0.25), "bias": jnp.asarray(0.25), "mean": jnp.asarray(9 / 4)}
    ones = ones_like(moments)
    scale = restraint(moments, (stretch, ones), *WITHOUT, POSITION)
    assert scale["kernel"] == scale["bias"] == 1
    # 49 / 4 per parameter of the others, 49 * 9 of this leaf.
    np.testing.assert_allclose(scale["mean"], np.sqrt(NOISELESS_SHARE / 4 / 9), rtol=0.1)
    gentle = {**stretch, "mean": jnp.asarray(1e-4)}
    assert restraint(moments, (gentle, ones), *WITHOUT, POSITION)["mean"] == 1


def test_numbers_of_a_vector_are_restrained_one_by_one():
    moments = moments_of(vector_limit=2, scales=(7, 700))
    scale = restraint(moments, (ones_like(moments),) * 2, *WITHOUT, POSITION)
    assert scale["kernel"] == 1
    np.testing.assert_array_equal(scale["bias"], [1, 1])
    # 49 per parameter of the others, 49 * 4 and that times 100^2 of these two.
    np.testing.assert_allclose(
        scale["mean"], np.sqrt(NOISELESS_SHARE / 4) / np.array([1, 100]), rtol=0.1
    )


def test_secants_know_the_curvature_of_what_is_far_away():
    """By the gradient's square, a thousand times its deviation, it would hardly move any more."""
    moments = moments_of(vector_limit=2, scales=(0.5, 5), offset=1e4)
    by_squares = restraint(moments, (ones_like(moments),) * 2, *WITHOUT, POSITION)["mean"]
    assert jnp.all(by_squares < 1e-3)
    scale = restraint(moments, (ones_like(moments),) * 2, *WITH, POSITION)["mean"]
    # Exact secants, 1 and 100, plus two standard errors of up to a tenth.
    others = sum(jnp.sum(moments.secant[k]) for k in ("kernel", "bias"))
    others /= sum(jnp.sum(moments.displacement[k]) for k in ("kernel", "bias"))
    expected = np.sqrt(NOISELESS_SHARE * float(others) / np.array([1, 100]))
    np.testing.assert_allclose(scale, np.minimum(expected, 1), rtol=0.1)


def test_nothing_is_restrained_without_any_noise():
    moments = moments_of(10)
    moments = moments._replace(noise=jax.tree.map(jnp.zeros_like, moments.noise))
    scale = restraint(moments, (ones_like(moments),) * 2, *WITHOUT, POSITION)
    assert all(c == 1 for c in jax.tree.leaves(scale))


def test_a_map_that_cannot_be_restrained_is_not_taken_to_be():
    """The identity stays as it is, and so does the step from one window to the next."""
    problem = Hierarchy()

    def stiff(x, minibatch):
        prior = -5000 * jnp.sum((x["groups"] - x["mean"]) ** 2)
        return 0.01 * problem.logdensity_fn(x, minibatch) + prior

    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile,
        stiff,
        blackjax_smile.minibatch_sampler(problem.data, 60),
        preconditioner="identity",
    )
    position = {"groups": jnp.zeros(problem.num_groups), "mean": jnp.zeros(())}
    _, info = warmup.run(jax.random.key(0), position, 3000)
    ends = np.cumsum(info.schedule.slow_windows)
    steps = np.asarray(info.steps.step_size)
    np.testing.assert_allclose(steps[ends], steps[ends - 1], rtol=0.1)
