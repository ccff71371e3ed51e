"""Time of a gradient of a convolutional network, by how its chains and convolutions are computed.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --widths 64 128 256 --image-side 32 --batch-size 256

A residual network of 3 x 3 convolutions on random images, inside a jitted scan, as a sampler
has it. Rows: XLA's convolution, and one written as a product of patches and a matrix; one
chain, the two halves of its minibatch (as in the warmup), and four chains. Columns, in ms:

side by side  under `jax.vmap`
in turn       the same with `blackjax_smile.sequential_gradient`
"""

import argparse
import itertools
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.util import pytree_size
from tables import report

import blackjax_smile
from blackjax_smile.minibatch_gradient import split_minibatch

NUM_CLASSES = 10
NUM_CHAINS = 4


def xla_convolution(image, kernel, stride: int):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image[None], kernel, (stride, stride), "SAME", dimension_numbers=dimensions
    )[0]


def product_of_patches(image, kernel, stride: int):
    size, height, width = kernel.shape[0], *image.shape[:2]
    margin = (size // 2, size // 2)
    padded = jnp.pad(image, (margin, margin, (0, 0)))
    patches = [
        padded[i : i + height : stride, j : j + width : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


CONVOLUTIONS = {"XLA's": xla_convolution, "patches": product_of_patches}


def init_parameters(rng_key, widths):
    keys = (jax.random.fold_in(rng_key, i) for i in itertools.count())

    def layer(size, inputs, outputs):
        kernel = jax.random.normal(next(keys), (size, size, inputs, outputs))
        return {
            "kernel": kernel * (2 / (size * size * inputs)) ** 0.5,
            "bias": jnp.zeros(outputs),
        }

    blocks = [
        {"first": layer(3, a, b), "second": layer(3, b, b), "skip": layer(1, a, b)}
        for a, b in itertools.pairwise([widths[0], *widths])
    ]
    head = jax.random.normal(next(keys), (widths[-1], NUM_CLASSES)) * widths[-1] ** -0.5
    return {"stem": layer(3, 3, widths[0]), "blocks": blocks, "head": head}


def build_logdensity(convolve, data_size: int):
    def apply(layer, x, stride=1):
        return convolve(x, layer["kernel"], stride) + layer["bias"][None, None]

    def loglikelihood(position, row):
        image, label = row
        x = jax.nn.relu(apply(position["stem"], image))
        for i, block in enumerate(position["blocks"]):
            stride = 1 if i == 0 else 2
            inner = jax.nn.relu(apply(block["first"], x, stride))
            x = jax.nn.relu(apply(block["skip"], x, stride) + apply(block["second"], inner))
        return jax.nn.log_softmax(jnp.mean(x, axis=(0, 1)) @ position["head"])[label]

    def logprior(position):
        return -0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(position))

    return blackjax.sgmcmc.gradients.logdensity_estimator(logprior, loglikelihood, data_size)


def settings(logdensity_fn, minibatch) -> dict:
    """Return gradients as functions of the position, and whether of several chains."""
    grad_fn = jax.grad(logdensity_fn)

    def halves(position):
        both = jax.vmap(grad_fn, (None, 0))(position, split_minibatch(minibatch))
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), both)

    return {
        "1 chain": (lambda position: grad_fn(position, minibatch), False),
        "1 chain, halves": (halves, False),
        f"{NUM_CHAINS} chains": (jax.vmap(lambda x: grad_fn(x, minibatch)), True),
        f"{NUM_CHAINS} chains, halves": (jax.vmap(halves), True),
    }


def measure(gradient, position, num_steps: int, rounds: int) -> float:
    """Return the median time of a gradient in a scan, in ms."""

    def body(position, _):
        return jax.tree.map(lambda x, g: x + 1e-9 * g, position, gradient(position)), None

    run = jax.jit(lambda position: jax.lax.scan(body, position, length=num_steps)[0])
    run = run.lower(position).compile()
    jax.block_until_ready(run(position))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run(position))
        times.append(1e3 * (time.perf_counter() - began) / num_steps)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16], help="of the blocks")
    parser.add_argument("--image-side", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=5, help="gradients in a timed run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()

    shape = (args.batch_size, args.image_side, args.image_side, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    minibatch = images, jnp.arange(args.batch_size) % NUM_CLASSES
    one = init_parameters(jax.random.key(1), args.widths)
    several = jax.vmap(lambda key: init_parameters(key, args.widths))(
        jax.random.split(jax.random.key(1), NUM_CHAINS)
    )
    print(f"{pytree_size(one)} parameters, {jax.devices()[0].device_kind}")
    rows = []
    for name, convolve in CONVOLUTIONS.items():
        side_by_side = build_logdensity(convolve, 20_000)
        columns = {
            "side by side": side_by_side,
            "in turn": blackjax_smile.sequential_gradient(side_by_side),
        }
        by_column = {label: settings(fn, minibatch) for label, fn in columns.items()}
        for setting in by_column["in turn"]:
            row = {"convolution": name, "gradient": setting}
            for label in columns:
                gradient, is_several = by_column[label][setting]
                position = several if is_several else one
                row[label] = measure(gradient, position, args.num_steps, args.rounds)
            rows.append(row)
    report(rows, args.output)


if __name__ == "__main__":
    main()
