"""The rule that sets the step size, fed with gradients of given sizes and directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import blackjax_smile
from blackjax_smile.adaptation import step_size
from blackjax_smile.sgmcmc import dynamics

pytestmark = pytest.mark.numerics


def drive(grad_norms, alignment=0.0, start=1e-3, d=10, rejected=(), is_last=True):
    """Feed gradients of given sizes to the step-size rule; return its step sizes.

    ``alignment`` is one for all, or one for each; ``is_last`` as in the last window.
    """
    target = 0.25
    state, sizes = step_size.init_step_size(jnp.asarray(start)), []
    state = state._replace(is_last=jnp.asarray(is_last))
    update = jax.jit(step_size.update_step_size, static_argnums=(2, 3))
    alignments = np.broadcast_to(alignment, len(grad_norms))
    for i, (norm, alignment) in enumerate(zip(grad_norms, alignments, strict=True)):
        info = blackjax_smile.SmileInfo(
            logdensity=0.0,
            kinetic_change=0.0,
            energy_change=0.0,
            deflection=state.step_size * norm / (d - 1),
            alignment=jnp.asarray(alignment),
            is_divergent=jnp.asarray(i in rejected),
        )
        state = update(state, info, d, target)
        sizes.append(float(state.step_size))
    return np.asarray(sizes)


def test_step_size_hits_the_target_and_recovers_from_a_bad_stretch():
    norms = np.concatenate([np.full(200, 3.0), np.full(20, 3e4), np.full(500, 3.0)])
    sizes = drive(norms)
    # A fixed alignment of 0 turns more than a random one does on average.
    target = sizes[199]
    np.testing.assert_allclose(target, 0.25 * 9 / 3.0, rtol=0.06)
    assert sizes[219] < 0.2 * target
    np.testing.assert_allclose(sizes[-1], target, rtol=0.01)


def test_one_spike_does_not_ruin_the_step_size():
    norms = np.full(300, 3.0)
    norms[200] = 3e6
    sizes = drive(norms)
    assert sizes[200] > 0.7 * sizes[199]


def test_step_size_shrinks_while_everything_is_rejected_and_grows_again():
    sizes = drive(np.full(600, 3.0), rejected=range(100, 200))
    assert sizes[199] < 0.3 * sizes[99]
    np.testing.assert_allclose(sizes[-1], sizes[99], rtol=0.01)


@pytest.mark.parametrize(
    ("alignment", "is_last", "target"),
    [
        (0.5, True, 0.25),
        (0.8, True, 0.25),
        (0.95, True, 0.25),
        (0.05, False, 0.25),
        (0.15, False, 0.5625),
    ],
)
def test_step_size_grows_on_the_way_down(alignment, is_last, target):
    """Until a step turns the momentum by the target, over what one at random does.

    Which is stretched by the square of the alignment over 0.1, but for the last window.
    """
    steps = drive(np.full(600, 3.0), alignment, is_last=is_last)
    turn = step_size.turning_angle(3.0 * steps[-1] / 9, jnp.asarray(alignment))
    at_random = np.exp(0.5 * np.mean(np.log(stats.beta(4.5, 0.5).rvs(100_000, random_state=0))))
    np.testing.assert_allclose(turn, target * at_random, rtol=0.02)


def test_the_last_window_knows_no_stretch():
    """A chain that is on its way to the end: what is frozen is on the target itself."""
    target = 0.25
    state = step_size.init_step_size(jnp.asarray(0.5))
    info = blackjax_smile.SmileInfo(0.0, 0.0, 0.0, jnp.asarray(0.4), jnp.asarray(0.3), False)
    state = step_size.update_step_size(state, info, 10, target)
    ratio = [
        step_size.restart_step_size(state, jnp.asarray(1.0), 10, target, is_last).step_size
        for is_last in (False, True)
    ]
    np.testing.assert_allclose(ratio[0] / ratio[1], 9.0, rtol=1e-5)


def test_step_size_shrinks_within_steps_when_the_way_ends():
    """Drawn straight down until the gradient turns against the momentum."""
    alignments = [0.5] * 5 + [0.9999] * 55 + [-0.9] * 20
    sizes = drive(np.full(80, 3.0), alignments, start=0.5)
    assert sizes[59] > 10 * sizes[4]
    assert min(sizes[60:70]) < 0.3 * sizes[59]


@pytest.mark.parametrize("deflection", [1e-3, 0.25, 3.0, 40.0])
@pytest.mark.parametrize("alignment", [-0.9, -0.2, 0.0, 0.4, 0.95])
def test_turning_angle_is_that_of_a_kick(deflection, alignment):
    gradient = jnp.asarray([1.0, 0.0, 0.0])
    momentum = jnp.asarray([alignment, (1 - alignment**2) ** 0.5, 0.0])
    turned = dynamics.kick(momentum, gradient, jnp.asarray(2 * deflection)).momentum
    expected = np.arctan2(np.linalg.norm(np.cross(momentum, turned)), momentum @ turned)
    found = step_size.turning_angle(jnp.asarray(deflection), jnp.asarray(alignment))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_start_from_nothing():
    """Without any gradient the step doubles until there is one."""
    sizes = drive(np.zeros(10), start=1e-6)
    np.testing.assert_allclose(sizes, 1e-6 * 2.0 ** np.arange(1, 11), rtol=1e-5)
