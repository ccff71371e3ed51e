"""The warmup through its public API, and its parts against exact results."""

import itertools

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import blackjax_smile
from blackjax_smile.adaptation import energy
from blackjax_smile.adaptation.schedule import build_schedule
from blackjax_smile.preconditioners import (
    DensePreconditioner,
    DiagonalPreconditioner,
    EstimatedLowRankPreconditioner,
    KroneckerPreconditioner,
    ScalarPreconditioner,
)
from helpers import LinearRegression, assert_moments, gaussian, run, sample

pytestmark = pytest.mark.numerics

PROBLEM = LinearRegression()
MEAN, COVARIANCE = PROBLEM.posterior


def adapt(problem=PROBLEM, position=None, num_steps=600, batch_size=100, seed=0, **options):
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, problem.logdensity_fn, problem.minibatch_fn(batch_size), **options
    )
    position = problem.mode if position is None else position
    return warmup.run(jax.random.key(seed), position, num_steps=num_steps)


class TestPosterior:
    """Nothing set by hand, against the exact posterior.

    Allowed bias: 0.05 posterior deviations in means, 5 % in variances.
    """

    # Five parameters: "auto" is dense, the low-rank map a full one.
    @pytest.mark.parametrize("preconditioner", ["auto", "low_rank"])
    def test_start_at_the_mode(self, preconditioner):
        draws, infos, _, info = sample(
            PROBLEM.logdensity_fn,
            PROBLEM.minibatch_fn(100),
            PROBLEM.mode,
            2000,
            30_000,
            preconditioner=preconditioner,
        )
        assert_moments(draws, MEAN, np.diag(COVARIANCE), 0.05, 0.05)
        assert jnp.mean(infos.is_divergent) < 2e-3
        assert info.windows.anisotropy[-1] < 0.7

    def test_diagonal_fails_on_correlated_noise_and_says_so(self):
        """What whitening is for: without it the variances are wrong by half."""
        problem = LinearRegression(d=10, spread=30.0)
        _, covariance = problem.posterior
        results = {}
        for preconditioner in ("diagonal", "dense"):
            draws, _, _, info = sample(
                problem.logdensity_fn,
                problem.minibatch_fn(100),
                problem.mode,
                2000,
                30_000,
                preconditioner=preconditioner,
            )
            ratio = np.var(np.asarray(draws, np.float64), axis=0) / np.diag(covariance)
            condition = info.windows.largest_eigenvalue / info.windows.smallest_eigenvalue
            results[preconditioner] = np.mean(ratio), condition[-1], info.windows.anisotropy[-1]
        assert abs(results["dense"][0] - 1) < 0.1
        assert results["dense"][1] < 10
        assert results["dense"][2] < 0.7
        assert results["diagonal"][0] < 0.8
        assert results["diagonal"][1] > 50
        assert results["diagonal"][2] > 1

    @pytest.mark.parametrize("start", ["mode", "near the mode"])
    def test_control_variates(self, start):
        """Neither noise nor gradient where the warmup starts."""
        position = PROBLEM.mode + (0.0 if start == "mode" else 1e-4)
        logdensity_fn = blackjax_smile.control_variates(
            PROBLEM.logdensity_fn, PROBLEM.mode, PROBLEM.data
        )
        draws, *_ = sample(logdensity_fn, PROBLEM.minibatch_fn(100), position, 1000, 10_000)
        assert_moments(draws, MEAN, np.diag(COVARIANCE), 0.05, 0.08)

    def test_bad_minibatches(self):
        minibatch_fn = PROBLEM.minibatch_fn(100)

        def corrupted(rng_key):
            key, corrupt_key = jax.random.split(rng_key)
            X, y = minibatch_fn(key)
            u = jax.random.uniform(corrupt_key)
            return X, y.at[0].add(jnp.where(u < 0.01, jnp.nan, jnp.where(u < 0.02, jnp.inf, 0)))

        draws, infos, _, info = sample(PROBLEM.logdensity_fn, corrupted, PROBLEM.mode, 2000, 30_000)
        assert_moments(draws, MEAN, np.diag(COVARIANCE), 0.05, 0.05)
        assert 0.015 < jnp.mean(infos.is_divergent) < 0.03
        assert 10 < jnp.sum(info.windows.num_rejected) < 80

    def test_full_batch(self):
        """Without minibatches BlackJAX's tuner does the work, behind the same interface."""
        covariance = np.array([[1.0, 0.9], [0.9, 2.0]])
        logdensity_fn = gaussian(covariance)
        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn)
        (state, parameters), info = warmup.run(jax.random.key(0), jnp.ones(2), num_steps=2000)
        assert info.num_integration_steps == 2000
        algorithm = blackjax_smile.smile(logdensity_fn, **parameters)
        states, _ = run(algorithm, state, 30_000)
        assert_moments(states.position, 0, np.diag(covariance), 0.03, 0.03)


class TestResult:
    def test_names_and_shapes(self):
        (state, parameters), info = adapt()
        schedule = build_schedule(600)
        assert info.schedule == schedule
        assert sum(schedule.windows) + schedule.num_probes == 600
        assert info.num_finite_probes == schedule.num_probes
        assert info.windows.L.shape == (len(schedule.windows),)
        assert info.steps.step_size.shape == (sum(schedule.windows),)
        assert parameters["L"] == info.windows.L[-1]
        assert parameters["step_size"] == info.windows.step_size[-1]
        assert jnp.sum(info.windows.num_rejected) == jnp.sum(info.steps.is_divergent) == 0
        assert isinstance(state, blackjax_smile.SmileState)

    def test_the_deflection_is_on_target(self):
        for target in (0.1, 0.25):
            _, info = adapt(target_deflection=target, num_steps=2000)
            np.testing.assert_allclose(info.windows.deflection[-1], target, rtol=0.2)

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({}, DensePreconditioner),
            ({"dense_limit": 4}, DiagonalPreconditioner),
            ({"preconditioner": "identity"}, ScalarPreconditioner),
            ({"preconditioner": "diagonal"}, DiagonalPreconditioner),
            ({"preconditioner": "kronecker"}, KroneckerPreconditioner),
            ({"preconditioner": "low_rank"}, EstimatedLowRankPreconditioner),
        ],
    )
    def test_preconditioner(self, options, kind):
        (_, parameters), _ = adapt(**options)
        assert isinstance(parameters["inverse_mass_matrix"], kind)

    def test_auto_takes_diagonal_when_the_windows_are_too_short_for_dense(self):
        problem = LinearRegression(d=60)
        (_, parameters), _ = adapt(problem, num_steps=100)
        assert isinstance(parameters["inverse_mass_matrix"], DiagonalPreconditioner)

    def test_auto_takes_kronecker_for_matrices_too_large_for_dense(self):
        position = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
        data = jax.random.normal(jax.random.key(0), (500, 4))

        def logdensity_fn(position, x):
            y = x @ position["kernel"] + position["bias"][None]
            return -250 * jnp.mean(jnp.sum((y - x[:, :2]) ** 2, axis=1))

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile,
            logdensity_fn,
            blackjax_smile.minibatch_sampler(data, 50),
            dense_limit=5,
        )
        (_, parameters), _ = warmup.run(jax.random.key(1), position, num_steps=200)
        assert isinstance(parameters["inverse_mass_matrix"], KroneckerPreconditioner)

    @pytest.mark.parametrize("preconditioner", ["diagonal", "dense"])
    def test_trees_and_dtypes(self, x64, preconditioner):
        """A nested float64 tree gives what the flat vector gives."""
        logdensity_fn, minibatch_fn = PROBLEM.logdensity_fn, PROBLEM.minibatch_fn(100)

        def tree_logdensity_fn(position, minibatch):
            theta = jnp.concatenate([position["a"][0].reshape(-1), position["b"]["c"][None]])
            return logdensity_fn(theta, minibatch)

        mode = PROBLEM.mode.astype(jnp.float64)
        tree = {"a": [mode[:4].reshape(2, 2)], "b": {"c": mode[4]}}
        step_sizes = []
        for position, density in ((mode, logdensity_fn), (tree, tree_logdensity_fn)):
            warmup = blackjax_smile.smile_adaptation(
                blackjax_smile.smile, density, minibatch_fn, preconditioner=preconditioner
            )
            (state, parameters), _ = warmup.run(jax.random.key(0), position, num_steps=400)
            chex.assert_trees_all_equal_shapes_and_dtypes(state.position, position)
            step_sizes.append(parameters["step_size"])
        np.testing.assert_allclose(*step_sizes, rtol=0.2)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("preconditioner", ["identity", "diagonal", "dense", "low_rank"])
    def test_single_precision_beside_double(self, x64, preconditioner, dtype):
        """Leaves keep their dtype where JAX's default is wider."""
        position = {"a": jnp.zeros((2, 2), dtype), "b": jnp.zeros((), dtype)}

        def logdensity_fn(position, minibatch):
            theta = jnp.concatenate([position["a"].reshape(-1), position["b"][None]])
            return PROBLEM.logdensity_fn(theta.astype(jnp.float32), minibatch)

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile,
            logdensity_fn,
            PROBLEM.minibatch_fn(100),
            preconditioner=preconditioner,
        )
        (state, parameters), _ = jax.eval_shape(
            lambda key: warmup.run(key, position, num_steps=400), jax.random.key(0)
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(state.position, position)
        assert parameters["step_size"].dtype == parameters["L"].dtype == jnp.float32

    @pytest.mark.parametrize("preconditioner", ["diagonal", "kronecker"])
    def test_leaves_without_an_element(self, preconditioner):
        def logdensity_fn(x, batch):
            return PROBLEM.logdensity_fn(x["all"], batch)

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile,
            logdensity_fn,
            PROBLEM.minibatch_fn(100),
            preconditioner=preconditioner,
        )
        start = {"a_first": jnp.zeros((0,)), "all": PROBLEM.mode, "no_row": jnp.zeros((0, 3))}
        (state, parameters), _ = warmup.run(jax.random.key(0), start, num_steps=200)
        assert jax.tree.map(jnp.shape, state.position) == jax.tree.map(jnp.shape, start)
        assert 0 < parameters["step_size"] < jnp.inf

    def test_jit_without_recompilation_and_vmap(self):
        """Chains adapted together are the chains adapted alone."""
        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, PROBLEM.logdensity_fn, PROBLEM.minibatch_fn(100)
        )
        keys = jax.random.split(jax.random.key(0), 3)
        positions = PROBLEM.mode[None] + 0.01 * jnp.arange(3.0)[:, None]
        traces = []

        @jax.jit
        def together(keys, positions):
            traces.append(1)
            return jax.vmap(lambda key, x: warmup.run(key, x, num_steps=300))(keys, positions)

        (states, parameters), info = together(keys, positions)
        together(keys[::-1], positions)
        assert len(traces) == 1
        (_, alone), alone_info = warmup.run(keys[1], positions[1], num_steps=300)
        # Chaotic dynamics: round-off grows, so agreement is loose at the end.
        np.testing.assert_allclose(
            info.windows.step_size[1], alone_info.windows.step_size, rtol=0.05
        )
        np.testing.assert_allclose(parameters["step_size"][1], alone["step_size"], rtol=0.05)
        assert states.position.shape == (3, 5)

    def test_a_second_run_traces_nothing(self):
        traces = []

        def logdensity_fn(position, minibatch):
            traces.append(1)
            return PROBLEM.logdensity_fn(position, minibatch)

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, logdensity_fn, PROBLEM.minibatch_fn(100)
        )
        warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=300)
        first = len(traces)
        warmup.run(jax.random.key(1), PROBLEM.mode, num_steps=300)
        assert len(traces) == first

    def test_it_stores_nothing_of_the_models_size_per_step(self):
        _, info = adapt()
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(info)]
        assert max(sizes) == sum(info.schedule.windows)


class TestHostIterable:
    def test_data_that_is_never_on_the_device_as_a_whole(self):
        """A generator of numpy batches drives both adaptation and sampling."""
        X, y = PROBLEM.data

        def batches(seed):
            rng = np.random.default_rng(seed)
            while True:
                rows = rng.integers(0, len(y), 200)
                yield X[rows], y[rows]

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, PROBLEM.logdensity_fn, batches(0)
        )
        (state, parameters), info = warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=500)
        assert info.windows.anisotropy[-1] < 1
        step = jax.jit(blackjax_smile.smile(PROBLEM.logdensity_fn, **parameters).step)
        draws = []
        for key, batch in zip(
            list(jax.random.split(jax.random.key(1), 5000)), batches(1), strict=False
        ):
            state, _ = step(key, state, batch)
            draws.append(state.position)
        assert_moments(np.stack(draws), MEAN, np.diag(COVARIANCE), 0.05, 0.05)

    def test_too_few_batches(self):
        batch = PROBLEM.minibatch_fn(10)(jax.random.key(0))
        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, PROBLEM.logdensity_fn, itertools.repeat(batch, 50)
        )
        with pytest.raises(ValueError, match=r"needs 100 minibatches, but .* ended after 50"):
            warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=100)


class TestErrors:
    def test_single_precision_in_the_full_batch_tuner(self, x64):
        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, lambda x: -0.5 * x @ x)
        with pytest.raises(ValueError, match=r"float64 alone .* got \['float32'\]"):
            warmup.run(jax.random.key(0), jnp.zeros(3, jnp.float32), num_steps=100)

    def test_odd_batch(self):
        with pytest.raises(ValueError, match="must be even; got 51"):
            adapt(batch_size=51)

    @pytest.mark.parametrize("num_steps", [1000.0, "1000", None])
    def test_steps_that_are_no_integer(self, num_steps):
        with pytest.raises(ValueError, match="num_steps must be an integer, got"):
            adapt(num_steps=num_steps)

    def test_too_few_steps(self):
        with pytest.raises(ValueError, match="num_steps >= 100, got 99"):
            adapt(num_steps=99)

    def test_unknown_preconditioner(self):
        with pytest.raises(ValueError, match=r"must be one of .* got 'full'"):
            adapt(preconditioner="full")

    @pytest.mark.parametrize("target", [0.0, "0.2", [0.1, 0.2]])
    def test_target(self, target):
        with pytest.raises(ValueError, match=r"must be a number in \(0, 1\]"):
            adapt(target_deflection=target)

    def test_key(self):
        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, lambda x: -0.5 * x @ x)
        with pytest.raises(ValueError, match="rng_key must be one key"):
            warmup.run(0, jnp.zeros(3))

    def test_integer_position(self):
        with pytest.raises(ValueError, match="dtype int32"):
            adapt(position=jnp.arange(5))

    def test_single_parameter(self):
        with pytest.raises(ValueError, match="at least 2 parameters"):
            adapt(position=jnp.zeros(1))

    def test_nan_everywhere(self):
        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, lambda x, batch: jnp.nan * jnp.sum(x), PROBLEM.minibatch_fn(10)
        )
        with pytest.raises(ValueError, match="not finite at the initial position"):
            warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=100)

    def test_nan_everywhere_else(self):
        def logdensity_fn(x, batch):
            noise = jnp.mean(batch[1]) * jnp.sum(x)
            return jnp.where(jnp.all(x == PROBLEM.mode), noise, jnp.nan)

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, logdensity_fn, PROBLEM.minibatch_fn(10)
        )
        with pytest.raises(ValueError, match="did not move"):
            warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=100)

    def test_logdensity_that_sums_over_the_minibatch(self):
        def logdensity_fn(x, batch):
            X, y = batch
            return -0.5 * x @ x - 0.5 * 40 * jnp.sum((y - X @ x) ** 2)

        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, logdensity_fn, PROBLEM.minibatch_fn(100)
        )
        with pytest.raises(ValueError, match="must average over the rows"):
            warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=100)
        batches = itertools.repeat(PROBLEM.minibatch_fn(100)(jax.random.key(1)))
        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn, batches)
        with pytest.raises(ValueError, match="must average over the rows"):
            warmup.run(jax.random.key(0), PROBLEM.mode, num_steps=100)


def test_a_built_algorithm_or_a_data_set_is_refused():
    built = blackjax_smile.smile(PROBLEM.logdensity_fn, step_size=0.1)
    for algorithm in (built, PROBLEM.logdensity_fn, blackjax_smile.online_smile, blackjax.mclmc):
        with pytest.raises(ValueError, match=r"must be blackjax_smile\.smile itself"):
            blackjax_smile.smile_adaptation(algorithm, PROBLEM.logdensity_fn, None)
    for data in (PROBLEM.data, list(PROBLEM.data), PROBLEM.data[0]):
        with pytest.raises(ValueError, match="looks like a data set"):
            blackjax_smile.smile_adaptation(blackjax_smile.smile, PROBLEM.logdensity_fn, data)
    with pytest.raises(ValueError, match="minibatch_fn must be a function"):
        blackjax_smile.with_minibatches(built, PROBLEM.data)
    with pytest.raises(ValueError, match=r"minibatch_fn must be a function of a key .* got int"):
        blackjax_smile.smile_adaptation(blackjax_smile.smile, PROBLEM.logdensity_fn, 5)


class TestParts:
    @pytest.mark.parametrize("num_steps", [100, 101, 150, 399, 400, 1000, 2000, 50_000])
    def test_schedule_adds_up(self, num_steps):
        schedule = build_schedule(num_steps)
        assert schedule.num_probes + sum(schedule.windows) == num_steps
        assert all(length > 0 for length in schedule.windows)
        doubling = schedule.slow_windows[:-1]
        assert doubling == tuple(100 * 2**i for i in range(len(doubling)))
        if doubling:
            assert schedule.slow_windows[-1] >= 2 * doubling[-1]

    @pytest.mark.parametrize("shape", [0.5, 1.0, 5.0, 50.0])
    def test_energy_threshold_is_ten_times_what_is_seen_or_expected(self, shape):
        """1e5 draws; Wilson-Hilferty is within 3 % at this quantile, 7 % at shape 0.5."""
        draws = jax.random.gamma(jax.random.key(0), shape, (100_000,)) * 2.0
        moments, _ = jax.lax.scan(
            lambda m, x: (energy.update_energy(m, x), None), energy.init_energy(jnp.float32), draws
        )
        exact = stats.gamma.ppf(1 - energy.TAIL, shape, scale=2.0)
        expected = energy.energy_threshold(moments._replace(largest=jnp.zeros(())))
        np.testing.assert_allclose(expected, 10 * exact, rtol=0.1)
        assert jnp.max(draws) > exact
        np.testing.assert_allclose(energy.energy_threshold(moments), 10 * jnp.max(draws), rtol=1e-6)

    def test_energy_threshold_is_off_without_a_law(self):
        moments = energy.init_energy(jnp.float32)
        assert energy.energy_threshold(moments) == jnp.inf
        for _ in range(5):
            moments = energy.update_energy(moments, jnp.asarray(2.0))
        assert energy.energy_threshold(moments) == jnp.inf


def test_blackjax_tuner_is_untouched():
    """The full-batch path returns what BlackJAX's own tuner returns."""
    logdensity_fn = gaussian(np.eye(3))
    warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn)
    (_, parameters), _ = warmup.run(jax.random.key(0), jnp.ones(3), num_steps=1000)
    init_key, tune_key = jax.random.split(jax.random.key(0))
    _, expected, _ = blackjax.mclmc_find_L_and_step_size(
        blackjax.mclmc.build_kernel(),
        1000,
        blackjax.mclmc.init(jnp.ones(3), logdensity_fn, init_key),
        tune_key,
        logdensity_fn=logdensity_fn,
        frac_tune1=0.3,
        frac_tune2=0.3,
        frac_tune3=0.3,
    )
    np.testing.assert_allclose(parameters["step_size"], expected.step_size, rtol=1e-5)


def test_no_key_is_used_twice_on_a_full_batch():
    """By JAX's own checker."""
    warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, gaussian(np.eye(3)))
    with jax.debug_key_reuse(True):
        (state, _), _ = warmup.run(jax.random.key(0), jnp.ones(3), num_steps=300)
    np.testing.assert_allclose(jnp.linalg.norm(state.momentum), 1, rtol=1e-5)
