"""Parameters that few rows inform, with exact posteriors, under every map.

    python benchmarks/rare_rows.py

groups       2000 effects of groups of about ten rows each, 20 000 rows
categories   1000 effects of categories by Zipf's law (the most frequent in 13 % of 50 000 rows,
             the rarest in about 7 rows)

The effects are independent, with a standard normal prior, the observations normal around them.
Minibatches of 200 rows, start at zero, four chains, 4000 gradients of warmup and 40 000 of
sampling, one draw kept in 40, nothing set by hand.

b2mean, ratio   mean over the effects of (bias of the mean)^2 / variance, and mean ratio of
                variances
largest ratio   of an effect
min ess         smallest effective number of draws, all chains
rejected        share of rejected steps
"""

import argparse
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from tables import print_table, report

import blackjax_smile

PRECONDITIONERS = ("diagonal", "low_rank", "kronecker", "dense")


def group_sizes(rng) -> np.ndarray:
    return np.maximum(rng.poisson(10, 2000), 2)


def category_sizes(rng) -> np.ndarray:
    weights = 1 / np.arange(1, 1001)
    return np.maximum(rng.multinomial(50_000, weights / weights.sum()), 2)


class Effects:
    """Effects with an exact normal posterior."""

    def __init__(self, sizes_fn):
        rng = np.random.default_rng(0)
        sizes = sizes_fn(rng)
        group = np.repeat(np.arange(len(sizes)), sizes)
        y = rng.normal(size=len(sizes))[group] + rng.normal(size=len(group))
        self.data = jnp.asarray(y, jnp.float32), jnp.asarray(group)
        self.variance = 1 / (1 + sizes)
        self.mean = self.variance * np.bincount(group, y)

    def logdensity_fn(self, position, minibatch):
        y, group = minibatch
        loglikelihood = -0.5 * (y - position[group, 0]) ** 2
        return -0.5 * jnp.sum(position**2) + len(self.data[0]) * jnp.mean(loglikelihood)


def run(problem: Effects, preconditioner: str, args) -> dict:
    began = time.perf_counter()
    result = blackjax_smile.sample(
        jax.random.key(1),
        problem.logdensity_fn,
        jnp.zeros((4, len(problem.mean), 1)),
        blackjax_smile.minibatch_sampler(problem.data, 200),
        preconditioner=preconditioner,
        num_warmup=args.num_warmup,
        num_samples=args.num_steps // 40,
        thinning=40,
        progress_bar=False,
    )
    draws = np.asarray(result.positions[..., 0], np.float64)
    ratio = np.var(draws, axis=(0, 1)) / problem.variance
    return {
        "b2mean": float(np.mean((draws.mean(axis=(0, 1)) - problem.mean) ** 2 / problem.variance)),
        "ratio": float(np.mean(ratio)),
        "largest ratio": float(np.max(ratio)),
        "min ess": float(jnp.min(blackjax.ess(draws))),
        "rejected": float(np.sum(result.statistics["num_rejected"])) / (4 * args.num_steps),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=40_000, help="after the warmup")
    parser.add_argument("--preconditioners", nargs="+", default=PRECONDITIONERS)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    rows = []
    for name, sizes_fn in {"groups": group_sizes, "categories": category_sizes}.items():
        problem = Effects(sizes_fn)
        for preconditioner in args.preconditioners:
            if preconditioner == "dense" and len(problem.mean) > 1000:
                continue
            row = run(problem, preconditioner, args)
            rows.append({"effects": name, "preconditioner": preconditioner, **row})
            print_table(rows[-1:])
    report(rows, args.output)


if __name__ == "__main__":
    main()
