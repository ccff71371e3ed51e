"""Hierarchies whose effects all start at zero, beside the same from a start that is spread.

    python benchmarks/effects_from_zero.py

Effects that are all alike say that their scale is zero, which the first steps must not believe.
Four chains, 4000 + 20 000 gradients, nothing set by hand; models of `large_hierarchies.py` and

negative binomial   1500 groups, 30 000 counts, shape learnt
correlated slopes   two correlated coefficients that vary over 300 groups, 15 000 rows
random walk         over 600 days, 20 000 rows

shift      largest difference of a hyperparameter's mean between the two starts, in deviations
ess, rhat  smallest and largest of the hyperparameters (and slopes), from zero; spread
"""

import argparse
from collections.abc import Callable

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from large_hierarchies import NUM_CHAINS, Model, crossed, intercepts, normal, sample, slopes
from posterior_scores import differences, flat
from tables import report


def spread(*shape: int):
    return jax.random.normal(jax.random.key(1), (NUM_CHAINS, *shape))


def negative_binomial() -> Model:
    rng, num_groups, num_rows = np.random.default_rng(8), 1500, 30_000
    group = rng.integers(0, num_groups, num_rows).astype(np.int32)
    rate = np.exp(0.5 + 0.4 * rng.normal(size=num_groups)[group])
    count = rng.poisson(rate * rng.gamma(2, 0.5, num_rows)).astype(np.float32)

    def logprior_fn(p):
        effects = normal(p["effects"] - p["mean"], p["log_scale"])
        return effects + normal(p["mean"] / 2) + normal(p["log_scale"]) + normal(p["log_shape"])

    def loglikelihood_fn(p, row):
        group, count = row
        r, rate = jnp.exp(p["log_shape"]), jnp.exp(p["effects"][group])
        of_shape = gammaln(count + r) - gammaln(r) + r * jnp.log(r / (r + rate))
        return of_shape + count * jnp.log(rate / (r + rate))

    zeros = jnp.zeros(NUM_CHAINS)
    start = {"effects": spread(num_groups), "mean": zeros, "log_scale": zeros, "log_shape": zeros}
    compared = ("mean", "log_scale", "log_shape")
    return Model((group, count), logprior_fn, loglikelihood_fn, start, compared)


def correlated_slopes() -> Model:
    rng, num_groups, num_rows = np.random.default_rng(6), 300, 15_000
    root = np.array([[0.6], [0.3]]) * np.linalg.cholesky([[1, 0.6], [0.6, 1]])
    coefficients = np.array([1, -0.5]) + rng.normal(size=(num_groups, 2)) @ root.T
    group = rng.integers(0, num_groups, num_rows).astype(np.int32)
    x = rng.normal(size=num_rows)
    y = coefficients[group, 0] + coefficients[group, 1] * x + rng.normal(size=num_rows)

    def logprior_fn(p):
        correlation = jnp.tanh(p["atanh"])
        a, b = ((p["slopes"] - p["mean"]) * jnp.exp(-p["log_scale"])).T
        rest = 1 - correlation**2
        effects = jnp.sum(-0.5 * (a**2 + b**2 - 2 * correlation * a * b) / rest)
        effects -= num_groups * (0.5 * jnp.log(rest) + jnp.sum(p["log_scale"]))
        scales = normal(p["log_scale"]) + normal(p["atanh"]) + normal(p["noise"])
        return effects + scales + normal(p["mean"] / 2)

    def loglikelihood_fn(p, row):
        group, x, y = row
        a, b = p["slopes"][group]
        return normal(y - a - b * x, p["noise"])

    zeros = jnp.zeros((NUM_CHAINS, 2))
    start = {"slopes": spread(num_groups, 2), "mean": zeros, "log_scale": zeros}
    start |= {"atanh": zeros[:, 0], "noise": zeros[:, 0]}
    rows = (group, x.astype(np.float32), y.astype(np.float32))
    compared = ("mean", "log_scale", "atanh", "noise")
    return Model(rows, logprior_fn, loglikelihood_fn, start, compared)


def random_walk() -> Model:
    rng, num_days, num_rows = np.random.default_rng(5), 600, 20_000
    level = 1 + np.cumsum(0.1 * rng.normal(size=num_days))
    day = rng.integers(0, num_days, num_rows).astype(np.int32)
    y = (level[day] + rng.normal(size=num_rows)).astype(np.float32)

    def logprior_fn(p):
        steps = normal(jnp.diff(p["level"]), p["log_scale"]) + normal(p["level"][0] / 5)
        return steps + normal(p["log_scale"]) + normal(p["noise"])

    def loglikelihood_fn(p, row):
        day, y = row
        return normal(y - p["level"][day], p["noise"])

    zeros = jnp.zeros(NUM_CHAINS)
    start = {"level": spread(num_days), "log_scale": zeros, "noise": zeros}
    return Model((day, y), logprior_fn, loglikelihood_fn, start, ("log_scale", "noise"))


MODELS: dict[str, tuple[Callable[[], Model], tuple[str, ...]]] = {
    "intercepts": (lambda: intercepts(is_spread=True), ("diagonal",)),
    "negative binomial": (negative_binomial, ("diagonal",)),
    "slopes": (lambda: slopes(1.0), ("kronecker", "diagonal")),
    "crossed, mean subtracted": (lambda: crossed(is_subtracted=True), ("diagonal",)),
    "correlated slopes": (correlated_slopes, ("kronecker", "diagonal")),
    "random walk": (random_walk, ("diagonal",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=20_000, help="after the warmup")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    table = []
    for name in args.models:
        build, maps = MODELS[name]
        model = build()
        for preconditioner in maps:
            runs = (
                sample(model, start, preconditioner, args)
                for start in (jax.tree.map(jnp.zeros_like, model.start), model.start)
            )
            zero, other = (flat({name: draws[name] for name in model.compared}) for draws in runs)
            shift = differences(zero, other.mean((0, 1)), other.std((0, 1)))["shift"]
            row = {"model": name, "map": preconditioner, "shift": shift}
            for label, draws in (("zero", zero), ("spread", other)):
                row[f"ess, {label}"] = float(np.min(blackjax.ess(draws)))
                row[f"rhat, {label}"] = float(np.max(blackjax.rhat(draws)))
            table.append(row)
    report(table, args.output)


if __name__ == "__main__":
    main()
