import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import esh_dynamics_momentum_update_one_step

from blackjax_smile._batching import rarely
from blackjax_smile._tree import random_signs
from blackjax_smile.preconditioners import as_preconditioner, diagonal_estimator
from blackjax_smile.sgmcmc import dynamics

pytestmark = pytest.mark.numerics

DIMENSION = 7


def unit(seed, d=DIMENSION):
    return blackjax.util.generate_unit_vector(jax.random.key(seed), jnp.zeros(d))


@pytest.mark.parametrize("grad_scale", [1e-3, 1.0, 30.0, 1e6])
def test_kick_is_blackjax_esh_update(x64, grad_scale):
    momentum, grad = unit(0), grad_scale * jax.random.normal(jax.random.key(1), (DIMENSION,))
    expected, _, kinetic_change = esh_dynamics_momentum_update_one_step()(momentum, grad, 0.3, 1.0)
    kicked = dynamics.kick(momentum, grad, jnp.asarray(0.3))
    np.testing.assert_allclose(kicked.momentum, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(kicked.kinetic_change, kinetic_change, rtol=1e-6, atol=1e-8)


def test_kick_is_exact_flow_for_constant_gradient(x64):
    """Two kicks of half the time are one of the whole time."""
    momentum, grad = unit(0), 20 * jax.random.normal(jax.random.key(1), (DIMENSION,))
    whole = dynamics.kick(momentum, grad, jnp.asarray(0.5))
    first = dynamics.kick(momentum, grad, jnp.asarray(0.25))
    second = dynamics.kick(first.momentum, grad, jnp.asarray(0.25))
    np.testing.assert_allclose(whole.momentum, second.momentum, rtol=1e-10)
    np.testing.assert_allclose(
        whole.kinetic_change, first.kinetic_change + second.kinetic_change, rtol=1e-10
    )


def test_kick_by_zero_gradient_is_nothing():
    kicked = dynamics.kick(unit(0), jnp.zeros(DIMENSION), jnp.asarray(0.5))
    np.testing.assert_allclose(kicked.momentum, unit(0), rtol=1e-6)
    assert kicked.deflection == 0
    assert kicked.kinetic_change == 0


def test_small_kinetic_changes_survive_float32():
    """In a million dimensions the formula as printed is off by 0.1 nats."""
    d = 1_000_000
    momentum, grad = unit(0, d), jax.random.normal(jax.random.key(1), (d,))
    single = float(dynamics.kick(momentum, grad, jnp.asarray(1.0)).kinetic_change)
    u, g = (np.asarray(x, np.float64) for x in (momentum, grad))
    u /= np.linalg.norm(u)
    s, delta = u @ g / np.linalg.norm(g), np.linalg.norm(g) / (d - 1)
    double = (d - 1) * (delta + np.log1p(0.5 * (1 - s) * np.expm1(-2 * delta)))
    assert abs(single - double) < 1e-3


def test_norm_does_not_drift():
    def body(momentum, key):
        grad = jax.random.normal(key, momentum.shape)
        return dynamics.kick(momentum, grad, jnp.asarray(0.5)).momentum, None

    momentum, _ = jax.lax.scan(body, unit(0), jax.random.split(jax.random.key(2), 20_000))
    assert abs(jnp.linalg.norm(momentum) - 1) < 1e-6


def test_step_is_reversible(x64):
    """Turned round, a step leads back."""
    precision = jnp.diag(jnp.arange(1.0, DIMENSION + 1))
    gradient_fn = jax.value_and_grad(lambda x: (-0.5 * x @ precision @ x, None), has_aux=True)
    identity = as_preconditioner(jnp.ones(DIMENSION))
    position, momentum = jnp.ones(DIMENSION), unit(3)
    step_size = jnp.asarray(0.7)

    def step(position, momentum):
        _, kick, _ = dynamics.midpoint_kick(
            gradient_fn, position, None, momentum, identity, step_size
        )
        moved, _ = dynamics.drift(position, None, momentum, kick.momentum, identity, step_size)
        return moved, kick.momentum

    there, turned = step(position, momentum)
    back, returned = step(there, -turned)
    np.testing.assert_allclose(back, position, atol=1e-12)
    np.testing.assert_allclose(-returned, momentum, atol=1e-12)


def test_refresh_forgets_over_L():
    """The mean cosine with the start is exp(-t / L), and no direction is preferred."""
    d, L, time = 50, 2.0, 1.0
    identity = as_preconditioner(1.0)
    keys = jax.random.split(jax.random.key(0), 4000)
    start = unit(0, d)
    refreshed = jax.vmap(
        lambda key: dynamics.refresh(
            key, start, start, identity, jnp.asarray(time), jnp.asarray(L), jnp.asarray(1)
        )
    )(keys)
    cosines = refreshed @ start
    error = jnp.std(cosines) / np.sqrt(len(keys))
    # Normalising shifts the mean by O(1/d).
    assert abs(jnp.mean(cosines) - np.exp(-time / L)) < 5 * error + 0.5 / d
    rest = refreshed - cosines[:, None] * start[None]
    spread = jnp.linalg.eigvalsh(jnp.cov(rest.T))[1:]
    ratio = (1 + np.sqrt(d / len(keys))) ** 2 / (1 - np.sqrt(d / len(keys))) ** 2
    assert spread[-1] / spread[0] < 1.1 * ratio


def test_refresh_of_interval_is_one_of_longer_time():
    identity = as_preconditioner(1.0)
    args = (jax.random.key(0), unit(0), unit(0), identity)
    several = dynamics.refresh(*args, jnp.asarray(0.1), jnp.asarray(3.0), jnp.asarray(8))
    one = dynamics.refresh(*args, jnp.asarray(0.8), jnp.asarray(3.0), jnp.asarray(1))
    np.testing.assert_allclose(several, one, rtol=1e-6)


def test_the_complementary_noise_turns_by_no_more_than_half_a_radian():
    """However long the step: its formula is one of small angles. Below, it is proportional."""
    preconditioner = diagonal_estimator(0).init(jnp.asarray([1.0, 1.0, 1.0, 1e-12, 1e-12]))
    keys, start = jax.random.split(jax.random.key(0), 4000), jnp.eye(5)[0]

    def turn(step_size):
        """Root mean square of what is added, over the momentum that was."""
        refreshed = jax.vmap(
            lambda key: dynamics.refresh(
                key, start, start, preconditioner, step_size, jnp.asarray(jnp.inf), jnp.asarray(1)
            )
        )(keys)
        return np.sqrt(np.mean(np.sum((refreshed / refreshed[:, :1] - start[None]) ** 2, axis=1)))

    small = 0.1 * 4 / np.sqrt(preconditioner.complement_trace)
    np.testing.assert_allclose(turn(jnp.asarray(small)), 0.1, rtol=0.1)
    np.testing.assert_allclose(turn(jnp.asarray(1e3 * small)), 0.5, rtol=0.1)


@pytest.mark.parametrize("d", [5, dynamics.COSTLY_FROM_DIMENSION])
def test_refresh_with_length_zero_draws_afresh(d):
    """No direction is preferred: no trace of the old momentum, nor of the complementary noise.

    Over 4000 draws the mean of a coordinate is within 5 standard errors, and its variance within
    5 of its own relative errors (at most sqrt(2 / 4000)): a false alarm in a coordinate has a
    probability of 6e-7, of the test below 2e-3.
    """
    preconditioner = diagonal_estimator(0).init(jnp.ones(d).at[-2:].set(1e-12))
    keys, start = jax.random.split(jax.random.key(0), 4000), jnp.eye(1, d)[0]
    drawn = jax.vmap(
        lambda key: dynamics.refresh(
            key, -start, start, preconditioner, jnp.asarray(1e3), jnp.asarray(0.0), jnp.asarray(4)
        )
    )(keys)
    np.testing.assert_allclose(jnp.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
    scaled = np.asarray(drawn) * np.sqrt(d)
    assert np.max(np.abs(scaled.mean(axis=0))) < 5 / np.sqrt(len(keys))
    assert np.max(np.abs(scaled.var(axis=0) - 1)) < 5 * np.sqrt(2 / len(keys))


def test_refresh_with_infinite_length_is_off():
    identity = as_preconditioner(1.0)
    refreshed = dynamics.refresh(
        jax.random.key(0),
        unit(0),
        unit(1),
        identity,
        jnp.asarray(1.0),
        jnp.asarray(jnp.inf),
        jnp.asarray(4),
    )
    np.testing.assert_allclose(refreshed, unit(0), rtol=1e-6)


@pytest.mark.parametrize(
    ("L", "interval"), [(np.inf, 64), (1e9, 64), (200.0, 4), (40.0, 1), (1e-3, 1)]
)
def test_schedule_keeps_the_turn_small(L, interval):
    identity = as_preconditioner(1.0)
    clocks = jnp.arange(dynamics.CLOCK_CYCLE)
    due, intervals = jax.vmap(
        lambda clock: dynamics.refresh_schedule(
            clock, 100, identity, jnp.asarray(1.0), jnp.asarray(L)
        )
    )(clocks)
    assert jnp.all(intervals == interval)
    assert jnp.sum(due) == dynamics.CLOCK_CYCLE // interval


def test_signs_are_fair_and_independent():
    signs = random_signs(jax.random.key(0), {"a": jnp.zeros((1000, 33)), "b": jnp.zeros(())})
    assert set(np.unique(signs["a"])) == {-1.0, 1.0}
    n = signs["a"].size
    assert abs(jnp.sum(signs["a"])) < 5 * np.sqrt(n)
    # Neighbouring bits of a word and neighbouring words.
    flat = signs["a"].reshape(-1)
    for lag in (1, 2, 31, 32, 33):
        assert abs(jnp.sum(flat[lag:] * flat[:-lag])) < 5 * np.sqrt(n)


class TestRarely:
    def test_value(self):
        def double(x, factor):
            return x * factor

        assert rarely(jnp.asarray(True), double, jnp.asarray(3.0), jnp.asarray(2.0)) == 6
        assert rarely(jnp.asarray(False), double, jnp.asarray(3.0), jnp.asarray(2.0)) == 3

    @pytest.mark.parametrize("nested", [False, True])
    def test_under_vmap_each_chain_gets_its_own(self, nested):
        predicate = jnp.asarray([True, False, True])

        def one(predicate, x):
            return rarely(predicate, lambda x, y: {"a": x["a"] + y}, {"a": x}, jnp.asarray(1.0))

        x = jnp.arange(3.0)
        batched = jax.vmap(one)
        if nested:
            out = jax.vmap(batched)(jnp.stack([predicate, ~predicate]), jnp.stack([x, x]))["a"]
            np.testing.assert_array_equal(out, [[1, 1, 3], [0, 2, 2]])
        else:
            np.testing.assert_array_equal(batched(predicate, x)["a"], [1, 1, 3])

    def test_under_vmap_nothing_runs_when_no_chain_needs_it(self):
        calls = []

        def observed(x):
            jax.debug.callback(lambda: calls.append(1))
            return x + 1

        f = jax.jit(jax.vmap(lambda p, x: rarely(p, observed, x)))
        jax.block_until_ready(f(jnp.zeros(4, bool), jnp.zeros(4)))
        jax.effects_barrier()
        assert not calls
        jax.block_until_ready(f(jnp.arange(4) == 2, jnp.zeros(4)))
        jax.effects_barrier()
        assert calls

    @pytest.mark.parametrize("predicate", [True, False])
    @pytest.mark.parametrize("over_chains", [False, True])
    def test_forward_derivatives(self, predicate, over_chains):
        """By `jax.jacfwd`, too, which batches the derivatives alone."""

        def f(x):
            chains = [predicate, not predicate] if over_chains else predicate
            map_ = jax.vmap if over_chains else lambda f: f
            x = jnp.broadcast_to(x, (2, 3)) if over_chains else x
            return map_(lambda p, x: rarely(p, lambda x, y: y * x**2, x, jnp.asarray(2.0)))(
                jnp.asarray(chains), x
            )

        x = jnp.arange(1.0, 4.0)
        slopes = {True: jnp.diag(4 * x), False: jnp.eye(3)}
        expected = slopes[predicate]
        if over_chains:
            expected = jnp.stack([expected, slopes[not predicate]])
        np.testing.assert_allclose(jax.jacfwd(f)(x), expected)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(f))(x), expected)
