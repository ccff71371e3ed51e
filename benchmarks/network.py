"""A classifier of about 1e6 parameters on random data, for the benchmarks of cost."""

import blackjax
import jax
import jax.numpy as jnp

from blackjax_smile import minibatch_sampler

LAYERS = (512, 1024, 512, 10)
DATA_SIZE = 20_000
BATCH_SIZE = 256


def init_parameters(rng_key, layers=LAYERS):
    keys = jax.random.split(rng_key, len(layers) - 1)
    return [
        {
            "kernel": jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5,
            "bias": jnp.zeros(outputs),
        }
        for key, inputs, outputs in zip(keys, layers[:-1], layers[1:], strict=True)
    ]


def logprior(parameters):
    return -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters))


def loglikelihood(parameters, row):
    x, label = row
    for layer in parameters[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ parameters[-1]["kernel"] + parameters[-1]["bias"]
    return jax.nn.log_softmax(logits)[label]


logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(logprior, loglikelihood, DATA_SIZE)
grad_fn = blackjax.sgmcmc.gradients.grad_estimator(logprior, loglikelihood, DATA_SIZE)


def random_minibatch_fn(rng_key, layers=LAYERS):
    x_key, label_key = jax.random.split(rng_key)
    data = (
        jax.random.normal(x_key, (DATA_SIZE, layers[0])),
        jax.random.randint(label_key, (DATA_SIZE,), 0, layers[-1]),
    )
    return minibatch_sampler(data, BATCH_SIZE)
