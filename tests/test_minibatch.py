import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blackjax.util import run_inference_algorithm, thin_algorithm

import blackjax_smile
from blackjax_smile.minibatch import NoInfo, ScheduledState
from helpers import LinearRegression

pytestmark = pytest.mark.numerics

DATA = {"x": jnp.arange(20.0).reshape(10, 2), "label": jnp.arange(10), "extra": (jnp.ones(10),)}


class TestSampler:
    @pytest.mark.parametrize("replace", [True, False])
    def test_rows_stay_together_and_dtypes_are_kept(self, replace):
        batch = blackjax_smile.minibatch_sampler(DATA, 4, replace)(jax.random.key(0))
        assert jax.tree.structure(batch) == jax.tree.structure(DATA)
        assert batch["label"].dtype == DATA["label"].dtype
        np.testing.assert_array_equal(batch["x"][:, 0], 2.0 * batch["label"])

    @pytest.mark.parametrize("replace", [True, False])
    def test_every_row_is_as_likely(self, replace):
        """Chi-squared with 9 degrees of freedom: above 45 with probability 1e-6."""
        sampler = blackjax_smile.minibatch_sampler(DATA, 4, replace)
        keys = jax.random.split(jax.random.key(0), 5000)
        labels = jax.jit(jax.vmap(sampler))(keys)["label"]
        counts = np.bincount(np.asarray(labels).reshape(-1), minlength=10)
        assert np.sum((counts - 2000.0) ** 2 / 2000) < 45

    def test_replacement(self):
        keys = jax.random.split(jax.random.key(0), 50)
        with_it = jax.vmap(blackjax_smile.minibatch_sampler(DATA, 10))(keys)["label"]
        without = jax.vmap(blackjax_smile.minibatch_sampler(DATA, 10, False))(keys)["label"]
        assert all(len(set(row)) == 10 for row in np.asarray(without))
        assert any(len(set(row)) < 10 for row in np.asarray(with_it))

    def test_scan(self):
        sampler = blackjax_smile.minibatch_sampler(DATA, 4)
        keys = jax.random.split(jax.random.key(0), 3)
        _, batches = jax.lax.scan(lambda c, key: (c, sampler(key)), 0, keys)
        np.testing.assert_array_equal(batches["label"][1], sampler(keys[1])["label"])

    @pytest.mark.parametrize(
        ("data", "batch_size", "message"),
        [
            (DATA, 11, "between 1 and the 10 observations"),
            (DATA, 0, "between 1 and the 10 observations"),
            ({"a": jnp.ones(3), "b": jnp.ones(4)}, 2, "differ in their number of rows.*3.*4"),
            (jnp.ones((0, 3)), 1, "empty"),
            ({}, 1, "holds no array"),
            ({"a": jnp.ones(3), "b": 1.0}, 2, r"\['b'\].*scalar"),
        ],
    )
    def test_errors(self, data, batch_size, message):
        with pytest.raises(ValueError, match=message):
            blackjax_smile.minibatch_sampler(data, batch_size)

    def test_randomness_of_the_host_is_an_error(self):
        """It would be drawn once, when the program is compiled."""
        X, y = np.ones((50, 2), np.float32), np.ones(50, np.float32)

        def minibatch_fn(rng_key):
            rows = np.random.default_rng(0).integers(0, 50, 10)
            return X[rows], y[rows]

        def logdensity_fn(x, minibatch):
            return 50 * jnp.mean(minibatch[0] @ x)

        warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn, minibatch_fn)
        with pytest.raises(ValueError, match="minibatch_fn does not use its rng_key"):
            warmup.run(jax.random.key(0), jnp.zeros(2))
        with pytest.raises(ValueError, match="minibatch_fn does not use its rng_key"):
            blackjax_smile.sample(
                jax.random.key(0),
                logdensity_fn,
                jnp.zeros((2, 2)),
                minibatch_fn,
                num_warmup=200,
                num_samples=10,
            )


class TestWithMinibatches:
    PROBLEM = LinearRegression(d=2, data_size=500, spread=1.0)

    @property
    def grad_fn(self):
        return jax.grad(self.PROBLEM.logdensity_fn)

    @pytest.mark.parametrize("step_size", [1e-5, optax.constant_schedule(1e-5)])
    @pytest.mark.parametrize("name", ["sgld", "sghmc", "sgnht"])
    def test_blackjax_algorithms_run_under_its_utilities(self, name, step_size):
        """The same chain as the hand-written loop with the same keys."""
        algorithm = getattr(blackjax, name)(self.grad_fn)
        minibatch_fn = self.PROBLEM.minibatch_fn(20)
        bound = blackjax_smile.with_minibatches(algorithm, minibatch_fn, step_size)
        state = bound.init(jnp.zeros(2), jax.random.key(0))
        _, (states, infos) = run_inference_algorithm(
            jax.random.key(1), bound, 5, initial_state=state
        )
        assert isinstance(infos, NoInfo)
        if callable(step_size):
            np.testing.assert_array_equal(states.count, jnp.arange(1, 6))
            states = states.state

        expected = algorithm.init(jnp.zeros(2), jax.random.key(0))
        for key in jax.random.split(jax.random.key(1), 5):
            batch_key, step_key = jax.random.split(key)
            expected = algorithm.step(step_key, expected, minibatch_fn(batch_key), 1e-5)
        last = jax.tree.map(lambda x: x[-1], states)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), last, expected)

        thinned = thin_algorithm(bound, 2)
        run_inference_algorithm(jax.random.key(2), thinned, 3, initial_state=state)

    def test_schedule_is_called_with_the_step_count(self):
        algorithm = blackjax.sgld(lambda position, batch: jnp.ones_like(position))
        # Without temperature: x += step_size, so x is the sum of the schedule.
        bound = blackjax_smile.with_minibatches(
            algorithm, lambda key: None, lambda count: 10.0**-count, 0.0
        )
        final, _ = run_inference_algorithm(
            jax.random.key(0), bound, 3, initial_position=jnp.zeros(1)
        )
        assert isinstance(final, ScheduledState)
        np.testing.assert_allclose(final.state, 1.11, rtol=1e-5)

    def test_position_that_is_a_pair_is_not_taken_for_state_and_info(self):
        algorithm = blackjax.sgld(lambda position, batch: jax.tree.map(jnp.zeros_like, position))
        bound = blackjax_smile.with_minibatches(algorithm, lambda key: None, 1e-3)
        new, info = bound.step(jax.random.key(0), (jnp.zeros(2), jnp.zeros(3)))
        assert isinstance(info, NoInfo)
        assert [x.shape for x in new] == [(2,), (3,)]

    def test_the_api_is_no_algorithm(self):
        with pytest.raises(ValueError, match=r"algorithm must be what smile.* GenerateSamplingAPI"):
            blackjax_smile.with_minibatches(blackjax_smile.smile, lambda key: None)

    def test_schedule_with_a_bare_state(self):
        algorithm = blackjax.sgld(self.grad_fn)
        bound = blackjax_smile.with_minibatches(algorithm, lambda key: None, lambda count: 1e-3)
        with pytest.raises(TypeError, match="init of the algorithm that with_minibatches returns"):
            bound.step(jax.random.key(0), jnp.zeros(2))


class TestControlVariates:
    PROBLEM = LinearRegression(d=4, data_size=1003)

    def estimate(self, **kwargs):
        problem = self.PROBLEM
        return blackjax_smile.control_variates(
            problem.logdensity_fn, problem.mode, problem.data, **kwargs
        )

    @pytest.mark.parametrize("batch_size", [100, 1003, 5000])
    def test_gradient_at_the_centre_is_the_full_one(self, batch_size):
        """Also when the last chunk is short."""
        problem = self.PROBLEM
        center = problem.mode + 0.1
        logdensity_fn = blackjax_smile.control_variates(
            problem.logdensity_fn, center, problem.data, batch_size=batch_size
        )
        batch = problem.minibatch_fn(10)(jax.random.key(0))
        X, y = (a.astype(np.float64) for a in problem.data)
        theta = np.asarray(center, np.float64)
        exact = X.T @ (y - X @ theta) - theta
        np.testing.assert_allclose(jax.grad(logdensity_fn)(center, batch), exact, rtol=1e-3)

    def test_unbiased_and_less_noisy(self):
        """Mean of minibatch gradients within 5 standard errors of the full gradient."""
        problem = self.PROBLEM
        position = problem.mode + 0.01
        batches = jax.vmap(problem.minibatch_fn(10))(jax.random.split(jax.random.key(0), 20_000))
        grads = jax.vmap(jax.grad(self.estimate()), (None, 0))(position, batches)
        plain = jax.vmap(jax.grad(problem.logdensity_fn), (None, 0))(position, batches)
        full = jax.grad(problem.logdensity_fn)(position, problem.data)
        error = jnp.std(grads, axis=0) / np.sqrt(len(grads))
        np.testing.assert_array_less(jnp.abs(jnp.mean(grads, axis=0) - full), 5 * error)
        assert jnp.all(jnp.std(grads, axis=0) < 0.1 * jnp.std(plain, axis=0))

    def test_errors(self):
        problem = self.PROBLEM
        # At the mode, where control variates of a sum and of a mean are both zero.
        with pytest.raises(ValueError, match="must average over the rows"):
            blackjax_smile.control_variates(
                lambda x, batch: -0.5 * jnp.sum((batch[1] - batch[0] @ x) ** 2),
                problem.mode,
                problem.data,
            )
        with pytest.raises(ValueError, match="centre is not finite"):
            blackjax_smile.control_variates(
                lambda x, batch: jnp.nan * jnp.sum(x), problem.mode, problem.data
            )
        with pytest.raises(ValueError, match="at least 1"):
            self.estimate(batch_size=0)
        with pytest.raises(ValueError, match="dtype int32"):
            blackjax_smile.control_variates(problem.logdensity_fn, jnp.arange(4), problem.data)
        message = r"in this order, but .* shapes \[\(99,\)\] and \[\(1000, {0}\), \(1000,\)\]"
        with pytest.raises(ValueError, match=message.format(problem.mode.size)):
            blackjax_smile.control_variates(problem.logdensity_fn, jnp.ones(99), problem.data)
