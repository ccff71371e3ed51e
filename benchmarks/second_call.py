"""Seconds of a first and a second call of `sample`, and the memory of large data.

    python benchmarks/second_call.py

Logistic regression on 1e6 rows of 100 columns (0.4 GB); two chains, 500 gradients of
warmup and 100 of sampling, so that nearly all of it is tracing and compiling. The second call has
another key.

seconds   of the call
peak      largest resident set so far (Linux), in GB beyond that before the first call
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from tables import print_table

import blackjax_smile

COLUMNS, BATCH = 100, 256
PRECONDITIONERS = ("diagonal", "kronecker", "dense")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--preconditioner", choices=PRECONDITIONERS, default="diagonal")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    X = rng.standard_normal((args.num_rows, COLUMNS), np.float32)
    y = (X[:, 0] > rng.standard_normal(args.num_rows, np.float32)).astype(np.float32)

    def logdensity_fn(position, minibatch):
        X, y = minibatch
        logits = X @ position
        loglikelihood = jnp.mean(y * logits - jnp.logaddexp(0, logits))
        return args.num_rows * loglikelihood - 0.5 * position @ position

    before, rows = peak(), []
    for call in ("first", "second"):
        began = time.perf_counter()
        blackjax_smile.sample(
            jax.random.key(len(rows)),
            logdensity_fn,
            jnp.zeros((2, COLUMNS)),
            (X, y),
            batch_size=BATCH,
            num_warmup=500,
            num_samples=100,
            preconditioner=args.preconditioner,
            progress_bar=False,
        )
        seconds = time.perf_counter() - began
        rows.append({"call": call, "seconds": seconds, "peak": peak() - before})
    print_table(rows)


if __name__ == "__main__":
    main()
