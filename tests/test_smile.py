"""The sampler through its public API."""

import blackjax
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import integrators
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from blackjax.util import run_inference_algorithm, thin_algorithm
from jax.flatten_util import ravel_pytree

import blackjax_smile
from blackjax_smile import smile
from blackjax_smile.preconditioners.diagonal import from_variance
from blackjax_smile.preconditioners.floor import FLOOR
from helpers import POSITIONS, LinearRegression, assert_moments, gaussian, run
from test_preconditioners import ALL, GIVEN, make

pytestmark = pytest.mark.numerics

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 2.0, 0.3], [0.0, 0.3, 0.5]])
INTEGRATORS = [None, integrators.isokinetic_mclachlan, integrators.isokinetic_omelyan]


def quadratic(position, minibatch=None):
    """A log-density of any tree; the minibatch only adds noise to the gradient."""
    flat, _ = ravel_pytree(position)
    noise = 0.0 if minibatch is None else jnp.mean(minibatch) * jnp.sum(flat)
    return (-0.5 * jnp.sum(flat**2) + noise).astype(flat.dtype)


def minibatch_quadratic(position, minibatch):
    return quadratic(position, minibatch)


def normal_minibatch(rng_key):
    return jax.random.normal(rng_key, (4,))


class TestFullBatch:
    @pytest.mark.parametrize("integrator", INTEGRATORS)
    @pytest.mark.parametrize(
        "inverse_mass_matrix", [1.0, np.diag(COVARIANCE), COVARIANCE], ids=["scalar", "1-D", "2-D"]
    )
    def test_moments(self, integrator, inverse_mass_matrix):
        """Exact moments at 5 standard errors, with 2 % for the discretisation."""
        algorithm = smile(
            gaussian(COVARIANCE),
            L=1.5,
            step_size=0.4,
            integrator=integrator,
            inverse_mass_matrix=jnp.asarray(inverse_mass_matrix, jnp.float32),
        )
        state = algorithm.init(jnp.zeros(3), jax.random.key(0))
        states, infos = run(algorithm, state, 30_000)
        assert_moments(states.position, 0, np.diag(COVARIANCE), 0.02, 0.02)
        assert not jnp.any(infos.is_divergent)

    @pytest.mark.parametrize("refresh", ["isotropic", "complementary", "both"])
    def test_a_stiff_direction_is_no_narrower(self, refresh):
        """Three of fifty directions are seven times as narrow, and a step is their radian.

        A refresh at the end of a step would leave 0.75 of their variances, one after the kick
        1.1 times every variance under the isotropic refresh. Exact to 5 standard errors and 4 %;
        a false alarm has a probability of 6e-7 a direction.
        """
        d = 50
        curvature = jnp.ones(d).at[:3].set(d - 1)
        # A map of a floor alone, of variance 1: all noise is complementary.
        floored = from_variance(jnp.zeros(d), jnp.full(d, 1 / FLOOR))
        algorithm = smile(
            lambda x: -0.5 * jnp.sum(curvature * x**2),
            L={"isotropic": 5.0, "complementary": jnp.inf, "both": 20.0}[refresh],
            step_size=1.0,
            inverse_mass_matrix=1.0 if refresh == "isotropic" else floored,
        )
        state = algorithm.init(jnp.zeros(d), jax.random.key(0))
        states, _ = run(algorithm, state, 100_000)
        assert_moments(states.position, 0, 1 / curvature, 0.04, 0.04)

    def test_drop_in_for_mclmc(self):
        """The same call, the same attributes of state and Info."""
        for api in (blackjax.mclmc, smile):
            algorithm = api(gaussian(COVARIANCE), L=1.0, step_size=0.1)
            state = algorithm.init(jnp.ones(3), jax.random.key(0))
            state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
            assert state.position.shape == (3,)
            assert jnp.isfinite(state.logdensity + info.logdensity + info.energy_change)
            assert hasattr(info, "kinetic_change")

    def test_energy_error_is_of_third_order(self, x64):
        """Halving the step divides the energy change of a step by about eight."""
        spread = []
        for step_size in (0.1, 0.05):
            algorithm = smile(gaussian(COVARIANCE), L=jnp.inf, step_size=step_size)
            state = algorithm.init(jnp.ones(3), jax.random.key(0))
            _, infos = run(algorithm, state, 4000)
            spread.append(jnp.sqrt(jnp.mean(infos.energy_change**2)))
        assert 6 < spread[0] / spread[1] < 13

    def test_first_energy_change_starts_at_the_initial_position(self, x64):
        algorithm = smile(gaussian(COVARIANCE), L=jnp.inf, step_size=1e-3)
        _, info = algorithm.step(jax.random.key(1), algorithm.init(jnp.ones(3), jax.random.key(0)))
        assert abs(info.energy_change) < 1e-5


class TestRejection:
    @staticmethod
    def step(minibatch_value, threshold=jnp.inf, integrator=None, seed=0):
        algorithm = smile(
            minibatch_quadratic,
            L=10.0,
            step_size=0.1,
            energy_threshold=threshold,
            integrator=integrator,
        )
        state = algorithm.init(POSITIONS["nested"](jnp.float32), jax.random.key(seed))
        state, _ = algorithm.step(jax.random.key(1), state, jnp.zeros(4))
        new, info = jax.jit(algorithm.step)(jax.random.key(2), state, jnp.full(4, minibatch_value))
        return algorithm, state, new, info

    @pytest.mark.parametrize("integrator", INTEGRATORS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_non_finite_reverts_retries_turns_round_and_then_redraws(self, value, integrator):
        algorithm, state, new, info = self.step(value, integrator=integrator)
        assert info.is_divergent
        assert info.energy_change == jnp.inf
        assert info.logdensity == state.logdensity
        assert new.num_failures == 1
        reverted = new._replace(num_failures=state.num_failures, clock=state.clock)
        chex.assert_trees_all_equal(reverted, state)
        # The second failure in a row is the move's, not the minibatch's.
        new, _ = algorithm.step(jax.random.key(3), new, jnp.full(4, value))
        chex.assert_trees_all_equal(new.momentum, jax.tree.map(jnp.negative, state.momentum))
        # The other way is tried twice, too. Where it is barred as well any direction may do.
        turned = new.momentum
        new, _ = algorithm.step(jax.random.key(4), new, jnp.full(4, value))
        chex.assert_trees_all_equal(new.momentum, turned)
        new, _ = algorithm.step(jax.random.key(5), new, jnp.full(4, value))
        momentum, old = ravel_pytree(new.momentum)[0], ravel_pytree(state.momentum)[0]
        np.testing.assert_allclose(jnp.linalg.norm(momentum), 1, rtol=1e-6)
        assert abs(momentum @ old) < 0.99
        reverted = new._replace(momentum=state.momentum, clock=state.clock)
        chex.assert_trees_all_equal(reverted, state)

    @pytest.mark.parametrize("integrator", INTEGRATORS)
    def test_energy_reverts_and_draws_a_momentum(self, integrator):
        # BlackJAX's integrators see one minibatch at both ends, so little change.
        value, threshold = (1e6, 10.0) if integrator is None else (100.0, 1e-4)
        _, state, new, info = self.step(value, threshold, integrator)
        assert info.is_divergent
        assert threshold < abs(info.energy_change) < jnp.inf
        reverted = new._replace(momentum=state.momentum, clock=state.clock)
        chex.assert_trees_all_equal(reverted, state)
        momentum, old = ravel_pytree(new.momentum)[0], ravel_pytree(state.momentum)[0]
        np.testing.assert_allclose(jnp.linalg.norm(momentum), 1, rtol=1e-6)
        assert abs(momentum @ old) < 0.99

    def test_redrawn_momenta_are_uniform(self):
        redrawn = jnp.stack(
            [ravel_pytree(self.step(1e6, 10.0, seed=seed)[2].momentum)[0] for seed in range(3)]
        )
        # The key of the step is the same: so is the draw, whatever the old momentum.
        np.testing.assert_allclose(redrawn, redrawn[:1].repeat(3, 0), rtol=1e-5)

    def test_without_a_threshold_large_changes_are_accepted(self):
        *_, info = self.step(1e6)
        assert not info.is_divergent

    @pytest.mark.parametrize("dimension", [2, 5])
    def test_chain_leaves_corners(self, dimension):
        """Exponential variables: some positions have walls both before and behind them."""
        algorithm = smile(
            lambda x: jnp.where(jnp.all(x > 0), -jnp.sum(x), jnp.nan), L=3.0, step_size=0.5
        )
        state = algorithm.init(jnp.ones(dimension), jax.random.key(0))
        _, infos = run(algorithm, state, 10_000)
        assert jnp.mean(infos.is_divergent[5000:]) < 0.9

    @pytest.mark.parametrize(("dimension", "step_size"), [(2, 1.0), (10, 2.0)])
    def test_moments_between_walls(self, dimension, step_size):
        """Gamma variables, NaN below zero: a momentum that is drawn afresh there does no harm.

        Means and variances are 3, at 5 standard errors and what such steps cost.
        """
        algorithm = smile(
            lambda x: jnp.sum(2 * jnp.log(x) - x), L=step_size + 2, step_size=step_size
        )
        state = algorithm.init(jnp.full(dimension, 3.0), jax.random.key(0))
        states, infos = run(algorithm, state, 40_000)
        assert 0.005 < jnp.mean(infos.is_divergent[20_000:]) < 0.1
        assert_moments(states.position, 3.0, np.full(dimension, 3.0), 0.05, 0.12)

    def test_chain_survives_bad_batches(self):
        """2 % of the batches are bad: that share is rejected, the moments stay right."""
        problem = LinearRegression(spread=1.0)

        def corrupted(rng_key):
            key, corrupt_key = jax.random.split(rng_key)
            X, y = problem.minibatch_fn(100)(key)
            u = jax.random.uniform(corrupt_key)
            bad = jnp.where(u < 0.01, jnp.nan, jnp.where(u < 0.02, jnp.inf, 0.0))
            return X, y.at[3].add(bad)

        mean, covariance = problem.posterior
        algorithm = smile(problem.logdensity_fn, L=0.2, step_size=0.01, inverse_mass_matrix=1.0)
        bound = blackjax_smile.with_minibatches(algorithm, corrupted)
        states, infos = run(bound, algorithm.init(problem.mode, jax.random.key(0)), 20_000)
        share = jnp.mean(infos.is_divergent)
        assert abs(share - 0.02) < 5 * np.sqrt(0.02 * 0.98 / 20_000)
        assert jnp.all(jnp.isfinite(states.position))
        assert_moments(states.position, mean, np.diag(covariance), 0.05, 0.1)


class TestConformance:
    """What every preconditioner and kind of position must do."""

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("kind", POSITIONS)
    def test_jit_without_recompilation(self, name, kind):
        if kind != "nested" and name in ("diagonal", "kronecker"):
            pytest.skip("fitted to the nested tree")
        algorithm = smile(minibatch_quadratic, L=2.0, step_size=0.1, inverse_mass_matrix=make(name))
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
        state = algorithm.init(POSITIONS[kind](jnp.float32), jax.random.key(0))
        for i in range(3):
            state, _ = step(jax.random.key(i), state, normal_minibatch(jax.random.key(i)))

    @pytest.mark.parametrize("name", ALL)
    def test_vmap_equals_separate_chains(self, name):
        """Also where the chains differ in parameters, so in their refresh schedules."""
        position = POSITIONS["nested"](jnp.float32)
        keys = jax.random.split(jax.random.key(0), 3)
        lengths = jnp.asarray([0.5, 20.0, jnp.inf])
        preconditioner = make(name)

        def chain(key, L):
            algorithm = smile(
                minibatch_quadratic, L=L, step_size=0.3, inverse_mass_matrix=preconditioner
            )
            init_key, run_key = jax.random.split(key)
            bound = blackjax_smile.with_minibatches(algorithm, normal_minibatch)
            _, history = run_inference_algorithm(
                run_key, bound, 20, initial_state=algorithm.init(position, init_key)
            )
            return history

        together, one = jax.jit(jax.vmap(chain))(keys, lengths), jax.jit(chain)
        for i in range(3):
            alone = one(keys[i], lengths[i])
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=2e-3, atol=2e-4
            )

    @pytest.mark.parametrize("kind", POSITIONS)
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
    def test_structure_and_dtypes_are_kept(self, x64, kind, dtype):
        position = POSITIONS[kind](dtype)
        for integrator in INTEGRATORS[: 1 if dtype == jnp.bfloat16 else 2]:
            algorithm = smile(quadratic, L=2.0, step_size=0.1, integrator=integrator)
            state = algorithm.init(position, jax.random.key(0))
            new, info = algorithm.step(jax.random.key(1), state)
            chex.assert_trees_all_equal_shapes_and_dtypes(state, new)
            chex.assert_trees_all_equal_shapes_and_dtypes(new.position, position)
            assert not info.is_divergent
            norm = jnp.linalg.norm(ravel_pytree(new.momentum)[0])
            np.testing.assert_allclose(norm, 1, rtol=1e-5)

    def test_mixed_dtypes(self, x64):
        position = {
            "a": jnp.ones(2, jnp.bfloat16),
            "b": jnp.ones(3, jnp.float64),
            "c": jnp.ones((), jnp.float32),
        }
        algorithm = smile(quadratic, L=2.0, step_size=0.1)
        state = algorithm.init(position, jax.random.key(0))
        new, _ = algorithm.step(jax.random.key(1), state)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, new)

    def test_bfloat16_small_steps_add_up(self):
        """A law much narrower than its mean: rounded away, no step would ever count."""
        scale = 0.01  # one unit in the last place of 1 is 0.0078 in bfloat16

        def logdensity_fn(x):
            return -0.5 * jnp.sum(((x["x"].astype(jnp.float32) - 1) / scale) ** 2)

        algorithm = smile(logdensity_fn, L=10 * scale, step_size=0.5 * scale)
        state = algorithm.init({"x": jnp.ones(20, jnp.bfloat16)}, jax.random.key(0))
        states, _ = run(algorithm, state, 10_000)
        exact = states.position["x"].astype(jnp.float32) + states.residual["x"]
        # The gradient sees the rounded position: its variance, 1/12 of a squared unit, adds.
        assert_moments(exact, 1.0, np.full(20, scale**2), 0.05, 0.15)

    def test_float64_and_float32_agree(self, x64):
        paths = []
        for dtype in (jnp.float32, jnp.float64):
            algorithm = smile(minibatch_quadratic, L=jnp.inf, step_size=0.2)
            state = algorithm.init(jnp.ones(6, dtype), jax.random.key(0))
            state = state._replace(momentum=jnp.full(6, 6**-0.5, dtype))
            step = jax.jit(algorithm.step)
            for i in range(50):
                state, _ = step(jax.random.key(i), state, jnp.full(2, np.sin(i), dtype))
            paths.append(np.asarray(state.position, np.float64))
        np.testing.assert_allclose(*paths, rtol=1e-3)

    def test_blackjax_utilities(self):
        algorithm = blackjax_smile.with_minibatches(
            smile(minibatch_quadratic, L=2.0, step_size=0.1), normal_minibatch
        )
        thinned = thin_algorithm(algorithm, 5, lambda info: jax.tree.map(jnp.mean, info))
        _, (states, infos) = run_inference_algorithm(
            jax.random.key(0), thinned, 10, initial_position=jnp.zeros(4)
        )
        assert states.position.shape == (10, 4)
        assert infos.deflection.shape == (10,)

    def test_no_transfer_to_the_host_in_a_step(self):
        algorithm = smile(minibatch_quadratic, L=2.0, step_size=0.1)
        step = jax.jit(algorithm.step)
        state = algorithm.init(jnp.zeros(4), jax.random.key(0))
        key, batch = jax.random.key(1), jnp.zeros(4)
        state, _ = step(key, state, batch)
        with jax.transfer_guard("disallow"):
            step(key, state, batch)

    def test_sharded_chains(self):
        """Chains on two (virtual) devices equal chains on one."""
        mesh = jax.make_mesh((2,), ("chains",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chains"))
        algorithm = smile(minibatch_quadratic, L=2.0, step_size=0.1)
        keys = jax.random.split(jax.random.key(0), 4)
        states = jax.vmap(algorithm.init)(jnp.ones((4, 6)), keys)
        step = jax.jit(jax.vmap(algorithm.step, (0, 0, None)))
        batch = normal_minibatch(keys[0])
        expected, _ = step(keys, states, batch)
        sharded, _ = step(*jax.device_put((keys, states), sharding), batch)
        assert sharded.position.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_allclose(sharded.position, expected.position, rtol=1e-6)


class TestErrors:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({}, "needs a step_size"),
            ({"step_size": 0.0}, "step_size must be positive, got 0.0"),
            ({"step_size": -1.0}, "step_size must be positive"),
            ({"step_size": np.nan}, "step_size must be positive"),
            ({"step_size": "0.1"}, "step_size must be one number, got '0.1'"),
            ({"step_size": np.ones(3)}, "step_size must be one number"),
            ({"step_size": np.inf}, "step_size must be finite, got inf"),
            ({"step_size": 1.0, "L": -1.0}, "L must be positive"),
            ({"step_size": 1.0, "energy_threshold": 0.0}, "energy_threshold must be positive"),
            ({"step_size": 1.0, "inverse_mass_matrix": jnp.ones((2, 3))}, r"\(2, 3\)"),
            (
                {"step_size": 1.0, "integrator": "mclachlan"},
                "isokinetic_mclachlan, got 'mclachlan'",
            ),
            ({"step_size": 1.0, "integrator": integrators.velocity_verlet}, "isokinetic_mclachlan"),
        ],
    )
    def test_parameters(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            smile(quadratic, **kwargs)

    def test_of_the_always_on_algorithm(self):
        with pytest.raises(ValueError, match="isokinetic_mclachlan, got 'mclachlan'"):
            blackjax_smile.online_smile(quadratic, 0.1, integrator="mclachlan")

    @pytest.mark.parametrize("name", ["smile", "online_smile"])
    def test_an_unknown_argument_is_one_of_the_sampler(self, name):
        with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'stepsize'"):
            getattr(blackjax_smile, name)(quadratic, stepsize=0.1)

    @pytest.mark.parametrize("integrator", INTEGRATORS[:2])
    @pytest.mark.parametrize("bad", [-1.0, 0.0, np.inf, np.nan])
    def test_inverse_mass_matrix_that_is_not_positive_and_finite(self, bad, integrator):
        one, U = jnp.ones(1), jnp.eye(3)[:, :1]
        numbers = jnp.ones(3).at[1].set(bad)
        for inverse_mass_matrix, name in (
            (bad, "inverse_mass_matrix"),
            (numbers, "inverse_mass_matrix"),
            (LowRankInverseMassMatrix(jnp.ones(3), U, bad * one), "lam of the LowRank"),
            (LowRankInverseMassMatrix(numbers, U, one), "sigma of the LowRank"),
        ):
            message = f"{name}.* must be positive and finite, got {bad}"
            with pytest.raises(ValueError, match=message):
                smile(
                    quadratic,
                    step_size=1.0,
                    integrator=integrator,
                    inverse_mass_matrix=inverse_mass_matrix,
                )
        algorithm = smile(quadratic, np.inf, 1.0, integrator, energy_threshold=np.inf)
        assert algorithm.init(jnp.zeros(3), jax.random.key(0)).logdensity == 0

    def test_logdensity_with_a_default_that_needs_a_minibatch(self):
        """An optional minibatch is taken at its word; a model that fails without says why."""

        def logdensity_fn(position, minibatch=None):
            return -0.5 * jnp.mean((minibatch - position) ** 2)

        message = r"failed \(TypeError\).*drop the default: logdensity_fn\(position, minibatch\)"
        with pytest.raises(ValueError, match=message):
            smile(logdensity_fn, step_size=0.1).init(jnp.zeros(4), jax.random.key(0))
        warmup = blackjax_smile.smile_adaptation(smile, logdensity_fn, normal_minibatch)
        with pytest.raises(ValueError, match=message):
            warmup.run(jax.random.key(0), jnp.zeros(4), num_steps=100)
        # What has nothing to do with the default passes as it is.
        with pytest.raises(TypeError, match="no minibatch's fault"):
            smile(self.broken, step_size=0.1).init(jnp.zeros(4), jax.random.key(0))

    @staticmethod
    def broken(position):
        raise TypeError("no minibatch's fault")

    @pytest.mark.parametrize(
        ("position", "message"),
        [
            (jnp.zeros(1), "at least 2 parameters, the position has 1"),
            ({}, "at least 2 parameters, the position has 0"),
            (jnp.arange(4), "dtype int32"),
            ({"a": jnp.zeros(2), "b": jnp.arange(2)}, r"\['b'\]"),
        ],
    )
    def test_position(self, position, message):
        with pytest.raises(ValueError, match=message):
            smile(quadratic, step_size=0.1).init(position, jax.random.key(0))

    def test_init_without_key(self):
        with pytest.raises(ValueError, match="rng_key"):
            smile(quadratic, step_size=0.1).init(jnp.zeros(3))

    @pytest.mark.parametrize("integrator", INTEGRATORS[:2])
    @pytest.mark.parametrize("name", [n for n in GIVEN if n != "scalar"])
    def test_inverse_mass_matrix_of_another_dimension(self, name, integrator):
        algorithm = smile(
            minibatch_quadratic,
            step_size=0.1,
            inverse_mass_matrix=GIVEN[name](),
            integrator=integrator,
        )
        state = algorithm.init(jnp.zeros(4), jax.random.key(0))
        with pytest.raises(ValueError, match=r"6 parameters .* the position has 4"):
            algorithm.step(jax.random.key(1), state, jnp.zeros(2))

    def test_logdensity_that_is_not_a_scalar(self):
        algorithm = smile(lambda x, batch: -0.5 * x**2, step_size=0.1)
        state = algorithm.init(jnp.zeros(4), jax.random.key(0))
        with pytest.raises(ValueError, match=r"must return a scalar.*\(4,\)"):
            algorithm.step(jax.random.key(1), state, jnp.zeros(2))

    def test_state_of_another_integrator(self):
        state = smile(quadratic, step_size=0.1).init(jnp.zeros(4), jax.random.key(0))
        algorithm = smile(quadratic, step_size=0.1, integrator=INTEGRATORS[1])
        with pytest.raises(ValueError, match="holds no gradient"):
            algorithm.step(jax.random.key(1), state)

    def test_bfloat16_with_an_integrator(self):
        algorithm = smile(quadratic, step_size=0.1, integrator=INTEGRATORS[1])
        with pytest.raises(ValueError, match="float32 or wider"):
            algorithm.init(jnp.zeros(4, jnp.bfloat16), jax.random.key(0))

    def test_mixed_dtypes_with_an_integrator(self, x64):
        position = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
        algorithm = smile(quadratic, step_size=0.1, integrator=INTEGRATORS[1])
        with pytest.raises(ValueError, match=r"one dtype; got \['float32', 'float64'\]"):
            algorithm.init(position, jax.random.key(0))

    def test_parts_with_an_integrator(self):
        with pytest.raises(ValueError, match="num_parts"):
            smile.build_kernel(INTEGRATORS[1], num_parts=2)
