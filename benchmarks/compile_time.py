"""Seconds until a warmup is compiled, beside BlackJAX's own.

    python benchmarks/compile_time.py

A network of 2-16-...-1 hidden layers of 16 units, regression on 800 rows; the whole program
of the adaptation (for `nuts` and `mclmc` of the full batch), traced and compiled for one chain
and for four under `jax.vmap`, what JAX keeps in memory cleared before each.

leaves     of the position
traced     seconds to trace and lower
compiled   seconds of XLA
lines      of the lowered program
"""

import argparse
import time

import blackjax
import jax
import numpy as np
from blackjax.mcmc.integrators import isokinetic_mclachlan
from tables import print_table

import blackjax_smile
from blackjax_smile import bnn

NUM_STEPS = 1000


def warmups(logdensity_fn, rows):
    """Return the adaptations as functions of a key and a position."""

    def full_batch_fn(position):
        return logdensity_fn(position, rows)

    def nuts(rng_key, position):
        warmup = blackjax.window_adaptation(blackjax.nuts, full_batch_fn)
        return warmup.run(rng_key, position, num_steps=NUM_STEPS)

    def mclmc(rng_key, position):
        return blackjax.mclmc_find_L_and_step_size(
            blackjax.mclmc.build_kernel(integrator=isokinetic_mclachlan),
            NUM_STEPS,
            blackjax.mclmc.init(position, full_batch_fn, rng_key),
            rng_key,
            logdensity_fn=full_batch_fn,
        )

    def smile(preconditioner):
        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile,
            logdensity_fn,
            blackjax_smile.minibatch_sampler(rows, batch_size=64),
            preconditioner=preconditioner,
        )
        return lambda rng_key, position: warmup.run(rng_key, position, num_steps=NUM_STEPS)

    ours = {f"smile, {name}": smile(name) for name in ("diagonal", "dense", "kronecker")}
    return {"nuts": nuts, "mclmc": mclmc, **ours}


def compile_once(function, *args) -> dict:
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    return {
        "traced": traced - start,
        "compiled": end - traced,
        "lines": lowered.as_text().count("\n"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-layers", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(800, 2)).astype(np.float32)
    rows = (x, np.sin(2 * x[:, 0]) * x[:, 1])
    found = []
    for num_hidden in args.hidden_layers:
        network = bnn.regression_network(num_features=2, hidden=(16,) * num_hidden)
        logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
            network.logprior, network.loglikelihood, len(x)
        )
        keys = jax.random.split(jax.random.key(0), 4)
        starts = jax.vmap(network.init)(keys)
        one = jax.tree.map(lambda leaf: leaf[0], starts)
        for name, warmup in warmups(logdensity_fn, rows).items():
            for num_chains, program, inputs in (
                (1, warmup, (keys[0], one)),
                (4, jax.vmap(warmup), (keys, starts)),
            ):
                jax.clear_caches()
                row = {"warmup": name, "leaves": len(jax.tree.leaves(one)), "chains": num_chains}
                found.append(row | compile_once(program, *inputs))
    print_table(found)


if __name__ == "__main__":
    main()
