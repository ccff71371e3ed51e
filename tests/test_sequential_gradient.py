"""Gradients of vmapped chains in turn: the same numbers, from the chains' own operations."""

import itertools
import re

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import blackjax_smile
from helpers import LinearRegression, assert_moments

pytestmark = pytest.mark.numerics

NUM_CLASSES = 3


def init_fn(rng_key):
    kernel_key, head_key = jax.random.split(rng_key)
    return {
        "conv": jax.random.normal(kernel_key, (3, 3, 1, 4)) / 3,
        "head": jax.random.normal(head_key, (4, NUM_CLASSES)),
        "log_scale": jnp.zeros((), jnp.bfloat16),
    }


def loglikelihood_fn(position, row):
    image, label = row
    dimensions = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(
        image[None], position["conv"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    logits = jnp.mean(jax.nn.relu(hidden), axis=(0, 1, 2)) @ position["head"]
    scale = jnp.exp(position["log_scale"].astype(jnp.float32))
    return jax.nn.log_softmax(logits * scale)[label]


def logprior_fn(position):
    return -0.5 * sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(position))


DATA = (
    jax.random.normal(jax.random.key(1), (64, 6, 6, 1)),
    jnp.arange(64) % NUM_CLASSES,
)
logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(logprior_fn, loglikelihood_fn, 64)
in_turn_fn = blackjax_smile.sequential_gradient(logdensity_fn)
minibatch_fn = blackjax_smile.minibatch_sampler(DATA, batch_size=16)
POSITIONS = jax.vmap(init_fn)(jax.random.split(jax.random.key(2), 3))


def group_counts(function, *args) -> set[int]:
    """Return the numbers of groups of a program's convolutions."""
    program = jax.make_jaxpr(function)(*args).pretty_print(use_color=False)
    return {int(number) for number in re.findall(r"_group_count=(\d+)", program)}


@pytest.mark.parametrize(
    "in_axes", [(0, None), (None, 0), (0, 0)], ids=["chains", "parts", "chains with their own rows"]
)
def test_value_and_gradient_are_those_of_the_function(in_axes):
    images, labels = DATA
    parts = (images[:48].reshape(3, 16, 6, 6, 1), labels[:48].reshape(3, 16))
    one = jax.tree.map(lambda leaf: leaf[0], POSITIONS)
    args = (POSITIONS if in_axes[0] == 0 else one, parts if in_axes[1] == 0 else DATA)
    expected, found = (
        jax.jit(jax.vmap(jax.value_and_grad(fn), in_axes))(*args)
        for fn in (logdensity_fn, in_turn_fn)
    )
    values = jax.vmap(in_turn_fn, in_axes)(*args)
    np.testing.assert_allclose(values, expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        tolerance = 2e-2 if a.dtype == jnp.bfloat16 else 1e-4
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("fn", "is_grouped"),
    [(logdensity_fn, True), (in_turn_fn, False)],
    ids=["side by side", "in turn"],
)
def test_no_chain_waits_for_a_grouped_convolution(fn, is_grouped):
    """The training, the warmup with its halves, and the sampling: each of the chains' own."""
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, fn, minibatch_fn, preconditioner="kronecker"
    )

    def train(rng_key):
        return blackjax_smile.train_ensemble(
            rng_key, init_fn, fn, minibatch_fn, optax.sgd(0.1), data_size=64, num_members=3
        ).positions

    def adapt_and_sample(rng_key, positions):
        adapted = blackjax_smile.adapt_ensemble(rng_key, warmup, positions, num_steps=100)
        return blackjax_smile.sample_ensemble(
            rng_key, blackjax_smile.smile, fn, minibatch_fn, adapted, num_samples=2
        )

    def adapt_one(rng_key, position):
        return warmup.run(rng_key, position, num_steps=100)

    key, one = jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], POSITIONS)
    for program, args in (
        (train, (key,)),
        (adapt_and_sample, (key, POSITIONS)),
        (adapt_one, (key, one)),
    ):
        assert (max(group_counts(program, *args)) > 1) == is_grouped, program.__name__


def test_memory_is_that_of_one_chain():
    layers, rows = (64, 256, 256, 1), jax.random.normal(jax.random.key(0), (1024, 64))

    def init(rng_key):
        keys = jax.random.split(rng_key, len(layers) - 1)
        shapes = itertools.pairwise(layers)
        return [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, shapes, strict=True)]

    def network_fn(position, x):
        for kernel in position:
            x = jnp.tanh(x @ kernel)
        return jnp.sum(x)

    def temporary_bytes(fn, num_chains: int) -> int:
        positions = jax.vmap(init)(jax.random.split(jax.random.key(0), num_chains))
        program = jax.jit(jax.vmap(jax.grad(fn), (0, None)))
        return program.lower(positions, rows).compile().memory_analysis().temp_size_in_bytes

    one = temporary_bytes(network_fn, 1)
    assert temporary_bytes(network_fn, 8) > 5 * one
    in_turn = blackjax_smile.sequential_gradient(network_fn)
    # Each loop over the chains adds a stack of their gradients.
    gradients = 8 * sum(4 * a * b for a, b in itertools.pairwise(layers))
    assert temporary_bytes(in_turn, 8) < 1.5 * one + 2 * gradients


def test_posterior_is_exact():
    """Four chains of a regression, by the error bars that their ESS gives (`helpers`)."""
    problem = LinearRegression(d=3)
    fn = blackjax_smile.sequential_gradient(problem.logdensity_fn)
    batches = problem.minibatch_fn(400)
    warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, fn, batches)
    starts = jnp.tile(problem.mode, (4, 1))
    adapted = blackjax_smile.adapt_ensemble(jax.random.key(1), warmup, starts, num_steps=1000)
    _, (positions, _) = blackjax_smile.sample_ensemble(
        jax.random.key(2), blackjax_smile.smile, fn, batches, adapted, 1000, thinning=5
    )
    mean, covariance = problem.posterior
    for chain in positions:
        assert_moments(chain, mean, np.diag(covariance))


def test_full_batch_and_other_samplers():
    fn = blackjax_smile.sequential_gradient(lambda x: -0.5 * x @ x)
    algorithm = blackjax.nuts(fn, step_size=0.5, inverse_mass_matrix=jnp.ones(2))
    states = jax.vmap(algorithm.init)(jnp.ones((2, 2)))
    states, info = jax.vmap(algorithm.step)(jax.random.split(jax.random.key(0), 2), states)
    assert jnp.all(info.acceptance_rate > 0.5)
    np.testing.assert_allclose(states.logdensity_grad, -states.position, rtol=1e-6)


def test_value_that_is_no_scalar_is_said():
    fn = blackjax_smile.sequential_gradient(lambda x, batch: x * jnp.mean(batch))
    with pytest.raises(ValueError, match="must return a scalar"):
        jax.grad(fn)(jnp.ones(2), jnp.ones(4))
