"""Regressions on tables whose columns are in any units, under every map.

    python benchmarks/raw_tables.py [--data FOLDER]

small        20 columns, one of them 10 000 times smaller than the others
wide         20 columns, their scales between 0.001 and 1000
categories   5 columns and 60 indicators of a category by Zipf's law, 20 000 rows: in 38 % of the
             rows to 0.1 %; their scales between 0.001 and 1000
airfoil      the table of the networks as it is, 1503 rows (where there is a folder): an
             intercept, a frequency of 3000, a displacement of 0.01; the outcome in units of 4.8 dB

The outcome is normal with unit noise, or binary (logistic), and the prior of each coefficient as
wide as its column is narrow. The posterior is known exactly, or by its curvature at the mode.
Minibatches of 200 rows, four chains from zero, 2000 gradients of warmup and 20 000 of sampling, one
draw kept in 10, nothing set by hand.

start, arrived   largest distance of a coefficient from the mode, in posterior deviations, at the
                 start and at the first draw kept
b2mean, ratio    mean over the coefficients of (bias of the mean)^2 / variance, and mean ratio of
                 variances
largest b2       of a coefficient
min, median ess  smallest and median effective number of draws of a coefficient, all chains
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
from posterior_scores import scores
from tables import print_table, report
from uci_data import ENVIRONMENT, read_rows

import blackjax_smile

NUM_ROWS = 20_000
PRECONDITIONERS = ("dense", "diagonal", "low_rank", "kronecker")


def small(rng):
    scales = np.ones(20)
    scales[3] = 1e-4
    return rng.normal(size=(NUM_ROWS, 20)), scales


def wide(rng):
    return rng.normal(size=(NUM_ROWS, 20)), 10 ** rng.uniform(-3, 3, size=20)


def categories(rng):
    share = np.arange(1, 61) ** -1.5
    category = rng.choice(60, size=NUM_ROWS, p=share / share.sum())
    X = np.concatenate([rng.normal(size=(NUM_ROWS, 5)), np.eye(60)[category]], axis=1)
    return X, 10 ** rng.uniform(-3, 3, size=65)


TABLES = {"small": small, "wide": wide, "categories": categories}


class Regression:
    """A regression with its posterior's mean and variance; columns in units of ``scales``."""

    def __init__(self, X, y, scales, is_binary: bool):
        self.scales, self.is_binary, self.num_rows = scales, is_binary, len(y)
        self.data = jnp.asarray(X * self.scales, jnp.float32), jnp.asarray(y, jnp.float32)
        # In units of the columns' own scales the prior is a standard normal.
        w = np.zeros(X.shape[1])
        for _ in range(20):
            mean, weight = X @ w, np.ones(len(y))
            if is_binary:
                mean = 1 / (1 + np.exp(-mean))
                weight = mean * (1 - mean)
            precision = X.T @ (weight[:, None] * X) + np.eye(len(w))
            w = w + np.linalg.solve(precision, X.T @ (y - mean) - w)
        self.mean = w / self.scales
        self.variance = np.diag(np.linalg.inv(precision)) / self.scales**2

    def logdensity_fn(self, w, minibatch):
        X, y = minibatch
        eta = X @ w
        loss = jax.nn.softplus(eta) - y * eta if self.is_binary else 0.5 * (y - eta) ** 2
        return -0.5 * jnp.sum((w * self.scales) ** 2) - self.num_rows * jnp.mean(loss)


def simulated(table_fn, is_binary: bool) -> Regression:
    rng = np.random.default_rng(0)
    X, scales = table_fn(rng)
    eta = X @ (0.5 * rng.normal(size=X.shape[1]))
    noise = rng.logistic(size=NUM_ROWS) if is_binary else rng.normal(size=NUM_ROWS)
    y = (eta + noise > 0).astype(float) if is_binary else eta + noise
    return Regression(X, y, scales, is_binary)


def airfoil(folder: str) -> Regression:
    """A prior deviation of 1000 over a column's mean."""
    rows = read_rows("airfoil", folder)
    columns = np.concatenate([np.ones((len(rows), 1)), rows[:, :-1]], axis=1)
    scales = np.mean(np.abs(columns), axis=0) / 1000
    return Regression(columns / scales, rows[:, -1] / 4.8, scales, is_binary=False)


def run(problem: Regression, preconditioner: str, args) -> dict:
    result = blackjax_smile.sample(
        jax.random.key(1),
        problem.logdensity_fn,
        jnp.zeros((4, len(problem.mean))),
        blackjax_smile.minibatch_sampler(problem.data, 200),
        preconditioner=preconditioner,
        num_warmup=args.num_warmup,
        num_samples=args.num_steps // 10,
        thinning=10,
        progress_bar=False,
    )
    draws = np.asarray(result.positions, np.float64)
    z = (draws - problem.mean) / np.sqrt(problem.variance)
    start = float(np.max(np.abs(problem.mean) / np.sqrt(problem.variance)))
    return {"start": start, **scores(z, result)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-warmup", type=int, default=2000)
    parser.add_argument("--num-steps", type=int, default=20_000, help="after the warmup")
    parser.add_argument("--preconditioners", nargs="+", default=PRECONDITIONERS)
    parser.add_argument("--tables", nargs="+", default=[*TABLES, "airfoil"])
    parser.add_argument("--data", default=os.environ.get(ENVIRONMENT), help="folder of airfoil")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    rows = []
    for name in args.tables:
        for outcome in ("normal", "binary"):
            if name == "airfoil" and (outcome == "binary" or not args.data):
                continue
            if name == "airfoil":
                problem = airfoil(args.data)
            else:
                problem = simulated(TABLES[name], outcome == "binary")
            for preconditioner in args.preconditioners:
                row = run(problem, preconditioner, args)
                rows.append(
                    {"table": name, "outcome": outcome, "preconditioner": preconditioner, **row}
                )
                print_table(rows[-1:])
    report(rows, args.output)


if __name__ == "__main__":
    main()
