"""The Bayesian network of the UCI benchmark: model, warm start, predictive density."""

import functools

import jax
import jax.numpy as jnp
import optax
from uci_data import Table

HIDDEN = (16, 16, 16)
LEARNING_RATE, WEIGHT_DECAY, BATCH_SIZE = 0.01, 0.005, 64
MAX_EPOCHS, PATIENCE = 200, 10
LOG_2PI = jnp.log(2 * jnp.pi)


def init_parameters(rng_key, num_inputs: int):
    sizes = (num_inputs, *HIDDEN, 1)
    keys = jax.random.split(rng_key, len(sizes) - 1)
    layers = [
        {
            "kernel": jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5,
            "bias": jnp.zeros(outputs),
        }
        for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    return {"layers": layers, "log_scale": jnp.zeros(())}


def predict(parameters, x):
    """Return the predicted means of the rows, shape ``(rows,)``."""
    for layer in parameters["layers"][:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    last = parameters["layers"][-1]
    return (x @ last["kernel"] + last["bias"][None])[:, 0]


def row_logdensities(parameters, rows):
    """Return log p(y | x, parameters) of every row."""
    x, y = rows
    s = parameters["log_scale"]
    return -0.5 * ((y - predict(parameters, x)) * jnp.exp(-s)) ** 2 - s - 0.5 * LOG_2PI


def logprior(parameters):
    return -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters))


def build_logdensity(num_rows: int):
    """Return ``(parameters, minibatch) -> log-density``, unbiased for ``num_rows``."""

    def logdensity_fn(parameters, minibatch):
        return logprior(parameters) + num_rows * jnp.mean(row_logdensities(parameters, minibatch))

    return logdensity_fn


def lppd(row_logs) -> float:
    """Return the mean over rows of the log of the mean density over draws ``(..., rows)``."""
    row_logs = row_logs.reshape(-1, row_logs.shape[-1])
    log_mean = jax.nn.logsumexp(row_logs, axis=0) - jnp.log(len(row_logs))
    return float(jnp.mean(log_mean))


@functools.partial(jax.jit, static_argnames="num_chains")
def _train(rng_key, train, validation, num_chains: int):
    x, y = train
    num_batches = len(x) // BATCH_SIZE
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss_fn(parameters, rows):
        return -jnp.mean(row_logdensities(parameters, rows))

    def member(key):
        init_key, key = jax.random.split(key)
        parameters = init_parameters(init_key, x.shape[1])

        def update(carry, rows):
            parameters, state = carry
            grad = jax.grad(loss_fn)(parameters, rows)
            updates, state = optimizer.update(grad, state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        def epoch(carry, key):
            fit, best, best_loss, waited = carry
            order = jax.random.permutation(key, len(x))[: num_batches * BATCH_SIZE]
            order = order.reshape(num_batches, BATCH_SIZE)
            new, _ = jax.lax.scan(update, fit, (x[order], y[order]))
            stopped = waited >= PATIENCE
            loss = loss_fn(new[0], validation)
            better = ~stopped & (loss < best_loss)
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new[0], best)
            best_loss = jnp.where(better, loss, best_loss)
            waited = jnp.where(better, 0, waited + 1)
            return (new, best, best_loss, waited), None

        start = ((parameters, optimizer.init(parameters)), parameters, jnp.inf, 0)
        (_, best, _, _), _ = jax.lax.scan(epoch, start, jax.random.split(key, MAX_EPOCHS))
        return best

    return jax.vmap(member)(jax.random.split(rng_key, num_chains))


def warm_starts(rng_key, table: Table, num_chains: int):
    """Return trained parameters with a leading chain axis, early-stopped on validation."""
    return _train(rng_key, table.train, table.validation, num_chains)
