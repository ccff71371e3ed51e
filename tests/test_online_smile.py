"""The paper's always-on sampler through its public API."""

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import IntegratorState, isokinetic_mclachlan
from blackjax.util import run_inference_algorithm
from jax.flatten_util import ravel_pytree

import blackjax_smile
from blackjax_smile import online_smile
from helpers import POSITIONS, LinearRegression, assert_moments, gaussian, run

pytestmark = pytest.mark.numerics

NAIVE = {"adaption_prob": 0.0, "reset_prob": 1.0}
VARIANTS = {
    "SMILE-naive": {"preconditioning": False, **NAIVE},
    "SMILE": {"preconditioning": False},
    "pSMILE-naive": NAIVE,
    "pSMILE": {},
}
KINDS = ("smile", "SMILE", "pSMILE")
COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 2.0, 0.3], [0.0, 0.3, 0.5]])


def noisy_quadratic(position, minibatch):
    """A log-density of any tree whose gradient has the minibatch's mean added."""
    flat, _ = ravel_pytree(position)
    return (-0.5 * jnp.sum(flat**2) + jnp.mean(minibatch) * jnp.sum(flat)).astype(flat.dtype)


def normal_minibatch(rng_key):
    return jax.random.normal(rng_key, (4,))


def after_steps(algorithm, num_steps, position=None, minibatch_fn=normal_minibatch):
    """Return the state after some steps on minibatches."""
    bound = blackjax_smile.with_minibatches(algorithm, minibatch_fn)
    state = algorithm.init(jnp.ones(6) if position is None else position, jax.random.key(0))
    final, _ = run_inference_algorithm(
        jax.random.key(1), bound, num_steps, initial_state=state, transform=lambda s, i: None
    )
    return final


class TestDynamics:
    def test_moments_on_the_full_batch(self):
        """Exact moments at 5 standard errors, with 2 % for the discretisation."""
        algorithm = online_smile(gaussian(COVARIANCE), 0.6, L=1.5, **VARIANTS["SMILE-naive"])
        states, infos = run(algorithm, algorithm.init(jnp.zeros(3), jax.random.key(0)), 10_000)
        assert_moments(states.position, 0, np.diag(COVARIANCE), 0.02, 0.02)
        assert not jnp.any(infos.is_divergent)

    def test_first_kick_uses_the_last_gradient(self):
        """A step equals McLachlan's from the last step's gradient, on the new minibatch."""
        algorithm = online_smile(noisy_quadratic, 0.3, **VARIANTS["SMILE-naive"])
        state = after_steps(algorithm, 3)
        batch = jnp.full(4, 2.0)
        new, info = algorithm.step(jax.random.key(2), state, batch)
        step = isokinetic_mclachlan(lambda x: noisy_quadratic(x, batch))
        start = IntegratorState(
            state.position, state.momentum, state.logdensity, state.logdensity_grad
        )
        expected, kinetic_change = step(start, 0.3)
        np.testing.assert_allclose(new.position, expected.position, rtol=1e-5)
        np.testing.assert_allclose(new.momentum, expected.momentum, rtol=1e-5, atol=1e-6)
        energy_change = kinetic_change + state.logdensity - expected.logdensity
        np.testing.assert_allclose(info.energy_change, energy_change, rtol=1e-4)
        np.testing.assert_allclose(info.energy_error, abs(info.energy_change))

    def test_integration_steps_share_a_minibatch(self):
        one, two = (
            online_smile(noisy_quadratic, 0.3, num_integration_steps=n, **VARIANTS["SMILE-naive"])
            for n in (1, 2)
        )
        state, batch = after_steps(one, 3), jnp.full(4, 2.0)
        together, info = two.step(jax.random.key(2), state, batch)
        middle, first = one.step(jax.random.key(2), state, batch)
        end, second = one.step(jax.random.key(2), middle, batch)
        np.testing.assert_allclose(together.position, end.position, rtol=1e-5)
        changes = first.energy_change + second.energy_change
        np.testing.assert_allclose(info.energy_change, changes, rtol=1e-4)

    def test_preconditioner_divides_by_the_running_deviations(self):
        """Noise of known deviations: the scales are their inverse over the root mean square."""
        deviations = jnp.asarray([0.1, 1.0, 10.0])

        def logdensity_fn(position, minibatch):
            return minibatch @ position - 1e-6 * position @ position

        def minibatch_fn(key):
            return deviations * jax.random.normal(key, (3,))

        algorithm = online_smile(logdensity_fn, 1e-3, smoothing_factor=1e-3, **NAIVE)
        state = after_steps(algorithm, 10_000, jnp.zeros(3), minibatch_fn)
        measured = np.sqrt(state.grad_moments.variance)
        # 2000 effective draws: five standard errors are 5 / sqrt(2 * 2000).
        np.testing.assert_allclose(measured, deviations, rtol=0.08)
        momentum = jnp.ones(3) / np.sqrt(3)
        state = state._replace(momentum=momentum, logdensity_grad=jnp.zeros(3))
        new, _ = algorithm.step(jax.random.key(5), state, jnp.zeros(3))
        scale = np.sqrt(np.mean(measured**2)) / measured
        np.testing.assert_allclose(
            new.position - state.position, 1e-3 * scale * momentum, rtol=1e-2, atol=1e-6
        )

    def test_nothing_adapts_in_the_first_steps(self):
        algorithm = online_smile(noisy_quadratic, 0.1)
        bound = blackjax_smile.with_minibatches(algorithm, normal_minibatch)
        _, infos = run(bound, algorithm.init(jnp.ones(6), jax.random.key(0)), 200)
        first, rest = (jax.tree.map(lambda x, s=s: x[s], infos) for s in (np.s_[:10], np.s_[10:]))
        assert jnp.all(first.step_size == jnp.float32(0.1))
        assert jnp.all(jnp.isinf(first.rejection_threshold) & (first.growth_threshold == 0))
        assert not jnp.any(first.is_divergent)
        assert jnp.all(rest.growth_threshold < rest.shrinkage_threshold)
        assert jnp.all(rest.shrinkage_threshold < rest.rejection_threshold)
        changes = np.unique(np.round(np.asarray(rest.step_size[1:] / rest.step_size[:-1]), 4))
        np.testing.assert_allclose(changes, [0.98, 1.0, 1.02])
        rejected = rest.energy_error > rest.rejection_threshold
        np.testing.assert_array_equal(rest.is_divergent, rejected)

    def test_adaption_prob_zero_keeps_the_step_size(self):
        algorithm = online_smile(noisy_quadratic, 0.1, adaption_prob=0.0)
        bound = blackjax_smile.with_minibatches(algorithm, normal_minibatch)
        _, infos = run(bound, algorithm.init(jnp.ones(6), jax.random.key(0)), 300)
        assert jnp.all(infos.step_size == jnp.float32(0.1))
        assert jnp.any(infos.is_divergent)

    def test_step_size_drifts_down_in_a_run(self):
        """The known limit: on a stationary target the tuner shrinks the step for ever."""
        algorithm = online_smile(noisy_quadratic, 0.1)
        state = after_steps(algorithm, 10_000)
        assert state.tuner.step_size < 0.1 * np.exp(-0.5 * 6.87)


class TestRejection:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_non_finite(self, variant, value):
        algorithm = online_smile(noisy_quadratic, 0.1, **VARIANTS[variant])
        state = after_steps(algorithm, 20, POSITIONS["nested"](jnp.float32))
        new, info = jax.jit(algorithm.step)(jax.random.key(2), state, jnp.full(4, value))
        assert info.is_divergent
        assert info.energy_change == jnp.inf
        self.assert_old_state(state, new)
        chex.assert_trees_all_equal(new.tuner.moments, state.tuner.moments)

    @pytest.mark.parametrize("variant", ["SMILE", "pSMILE"])
    def test_energy(self, variant):
        algorithm = online_smile(noisy_quadratic, 0.1, **VARIANTS[variant])
        state = after_steps(algorithm, 50, POSITIONS["nested"](jnp.float32))
        new, info = jax.jit(algorithm.step)(jax.random.key(2), state, jnp.full(4, 1e6))
        assert info.is_divergent
        assert info.rejection_threshold < info.energy_error < jnp.inf
        self.assert_old_state(state, new)
        # The law of the energy error takes the spike in, but not at its full size.
        old, moments = state.tuner.moments, new.tuner.moments
        assert old.mean < moments.mean < old.mean + 0.5 * jnp.sqrt(old.variance)

    @staticmethod
    def assert_old_state(state, new):
        momentum, old = ravel_pytree(new.momentum)[0], ravel_pytree(state.momentum)[0]
        np.testing.assert_allclose(jnp.linalg.norm(momentum), 1, rtol=1e-6)
        assert abs(momentum @ old) < 0.99
        reverted = new._replace(momentum=state.momentum, tuner=state.tuner)
        chex.assert_trees_all_equal(reverted, state)
        assert new.tuner.num_steps == state.tuner.num_steps + 1


class TestConformance:
    @pytest.mark.parametrize("kind", POSITIONS)
    def test_positions_without_recompilation(self, kind):
        algorithm = online_smile(noisy_quadratic, 0.1, L=2.0)
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
        state = algorithm.init(POSITIONS[kind](jnp.float32), jax.random.key(0))
        for i in range(3):
            new, _ = step(jax.random.key(i), state, normal_minibatch(jax.random.key(i)))
            chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
            state = new

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_dtypes_are_kept(self, x64, dtype):
        algorithm = online_smile(noisy_quadratic, 0.1, L=2.0)
        state = algorithm.init(POSITIONS["nested"](dtype), jax.random.key(0))
        new, _ = algorithm.step(jax.random.key(1), state, jnp.zeros(4, dtype))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)

    @pytest.mark.parametrize("preconditioning", [True, False])
    def test_vmap_equals_separate_chains(self, preconditioning):
        @jax.jit
        def chain(key, step_size):
            algorithm = online_smile(
                noisy_quadratic, step_size, L=5.0, preconditioning=preconditioning
            )
            init_key, run_key = jax.random.split(key)
            bound = blackjax_smile.with_minibatches(algorithm, normal_minibatch)
            state = algorithm.init(jnp.ones(6), init_key)
            return run_inference_algorithm(run_key, bound, 30, initial_state=state)[1]

        keys, step_sizes = jax.random.split(jax.random.key(0), 3), jnp.asarray([0.03, 0.1, 0.3])
        together = jax.jit(jax.vmap(chain))(keys, step_sizes)
        for i in range(3):
            alone = chain(keys[i], step_sizes[i])
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=5e-3, atol=5e-4
            )

    def test_the_initial_state_can_be_donated(self):
        algorithm = online_smile(noisy_quadratic, 0.01)
        state = algorithm.init(jnp.ones(6), jax.random.key(0))
        step = jax.jit(algorithm.step, donate_argnums=1)
        new, _ = step(jax.random.key(1), state, normal_minibatch(jax.random.key(2)))
        assert np.all(np.isfinite(new.position))

    def test_full_batch_under_run_inference_algorithm_to_arviz(self):
        algorithm = online_smile(gaussian(COVARIANCE), 0.3)
        _, (states, infos) = blackjax.util.run_inference_algorithm(
            jax.random.key(0), algorithm, 20, initial_position=jnp.zeros(3)
        )
        data = blackjax_smile.to_arviz(states, infos)
        assert {"step_size", "diverging", "energy_error"} <= set(data.sample_stats.data_vars)


class TestGuardrails:
    """No variant ends non-finite, and says what it rejected; smile too."""

    @staticmethod
    def histories(kind, logdensity_fn, step_size, minibatch_fn, position, num_steps):
        """Return states and infos, of the two variants of a kind side by side."""

        def chain(adaption_prob, reset_prob):
            if kind == "smile":
                algorithm = blackjax_smile.smile(logdensity_fn, step_size=step_size)
            else:
                algorithm = online_smile(
                    logdensity_fn,
                    step_size,
                    preconditioning=kind == "pSMILE",
                    adaption_prob=adaption_prob,
                    reset_prob=reset_prob,
                )
            bound = blackjax_smile.with_minibatches(algorithm, minibatch_fn)
            return run(bound, algorithm.init(position, jax.random.key(0)), num_steps)

        options = jnp.asarray([0.0, 0.1]), jnp.asarray([1.0, 0.98])
        states, infos = jax.jit(jax.vmap(chain))(*options)
        for leaf in jax.tree.leaves(states._replace(logdensity=None)):
            assert jnp.all(jnp.isfinite(leaf))
        non_finite = jnp.isinf(infos.energy_change)
        assert jnp.all(infos.is_divergent[non_finite])
        if kind != "smile":
            beyond = infos.energy_error > infos.rejection_threshold
            np.testing.assert_array_equal(infos.is_divergent, beyond | non_finite)
            # The guarded variant rejects about its 2 %, the naive one nothing finite.
            guarded = jnp.sum(beyond & ~non_finite, axis=1)
            assert guarded[0] == 0
            assert guarded[1] > 0.005 * num_steps
        return states, infos

    @pytest.mark.parametrize("kind", KINDS)
    def test_cliff(self, kind):
        """Log-density -inf beyond a wall at x_0 = 1: the chain stays in front of it."""

        def logdensity_fn(x, noise):
            inside = -0.5 * x @ x + noise @ x
            return jnp.where(x[0] < 1.0, inside, -jnp.inf)

        states, infos = self.histories(
            kind, logdensity_fn, 0.3, lambda k: jax.random.normal(k, (5,)), jnp.zeros(5), 3000
        )
        assert jnp.all(jnp.any(jnp.isinf(infos.energy_change), axis=1))
        # smile looks at midpoints: it may pass the wall by half a step.
        assert jnp.max(states.position[..., 0]) < (1.15 if kind == "smile" else 1.0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_heavy_tailed_covariates(self, kind):
        """Student-t(2) covariates: gradients without a variance."""
        rng = np.random.default_rng(0)
        X = rng.standard_t(2, (2000, 4)).astype(np.float32)
        y = (X @ np.ones(4) + rng.normal(size=2000)).astype(np.float32)

        def logdensity_fn(theta, batch):
            return -0.5 * theta @ theta - 1000 * jnp.mean((batch[1] - batch[0] @ theta) ** 2)

        states, _ = self.histories(
            kind,
            logdensity_fn,
            0.02,
            blackjax_smile.minibatch_sampler((X, y), 20),
            jnp.ones(4),
            3000,
        )
        assert jnp.max(jnp.abs(states.position - 1)) < 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_corrupted_batches(self, kind):
        """One batch in a thousand is NaN or inf: these are rejected, all of them."""
        problem = LinearRegression(spread=1.0)

        def corrupted(rng_key):
            key, corrupt_key = jax.random.split(rng_key)
            X, y = problem.minibatch_fn(20)(key)
            u = jax.random.uniform(corrupt_key)
            return X, y.at[3].add(jnp.where(u < 5e-4, jnp.nan, jnp.where(u < 1e-3, jnp.inf, 0.0)))

        _, infos = self.histories(kind, problem.logdensity_fn, 0.01, corrupted, problem.mode, 6000)
        # Six are expected; outside 1 to 20 a Poisson law falls with probability 0.0025.
        count = jnp.sum(jnp.isinf(infos.energy_change), axis=1)
        assert jnp.all((count >= 1) & (count <= 20))


class TestErrors:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"step_size": None}, "needs the step_size"),
            ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
            ({"step_size": np.nan}, "step_size must be positive"),
            ({"step_size": np.inf}, "step_size must be positive and finite"),
            ({"L": -1.0}, "L must be positive"),
            ({"adaption_prob": 1.5}, r"adaption_prob must be in \[0, 1\], got 1.5"),
            ({"adaption_strength": 1.0}, r"adaption_strength must be in \[0, 1\)"),
            ({"reset_prob": 0.0}, r"reset_prob must be in \(0, 1\]"),
            ({"smoothing_factor": 2.0}, r"smoothing_factor must be in \(0, 1\]"),
            ({"num_integration_steps": 0}, "integer of at least 1, got 0"),
            ({"num_integration_steps": 1.5}, "integer of at least 1"),
        ],
    )
    def test_parameters(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            online_smile(noisy_quadratic, **{"step_size": 0.1, **kwargs})

    def test_position(self):
        with pytest.raises(ValueError, match="at least 2 parameters"):
            online_smile(noisy_quadratic, 0.1).init(jnp.zeros(1), jax.random.key(0))
        with pytest.raises(ValueError, match="float32 or wider"):
            online_smile(noisy_quadratic, 0.1).init(jnp.zeros(4, jnp.bfloat16), jax.random.key(0))
