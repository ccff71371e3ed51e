"""A softmax regression of 1212 parameters, of correlated columns, under the maps for its size.

    python benchmarks/softmax_regression.py
    python benchmarks/softmax_regression.py --preconditioners kronecker --num-warmup 2000

20 000 rows, 100 columns, 12 classes; a kernel and a bias, standard normal priors in units of the
columns. *standardised*: columns of deviation 1. *raw*: of deviations between 0.01 and 100. The
posterior is known by its curvature at the mode. Minibatches of 200 rows, four chains from zero,
4000 gradients of warmup and 20 000 of sampling, one draw kept in 10, nothing set by hand.

arrived            largest distance of a coefficient from the mode at the first draw kept, in
                   posterior deviations
b2mean, ratio      mean over the coefficients of (bias of the mean)^2 / variance, and mean ratio
                   of variances
largest b2         of a coefficient
min, median ess    effective number of draws of a coefficient, all chains
ratios             the smallest and the largest ratio of variances
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from posterior_scores import scores
from scipy.linalg import cho_factor, cho_solve
from tables import print_table, report

import blackjax_smile

NUM_ROWS, NUM_COLUMNS, NUM_CLASSES = 20_000, 100, 12
PRECONDITIONERS = ("kronecker", "diagonal", "low_rank")


def simulate():
    """Return standardised columns, whose correlations have condition number 43 000, and classes."""
    rng = np.random.default_rng(0)
    mixing = 0.5 * np.eye(NUM_COLUMNS)
    mixing += 0.8 * rng.normal(size=mixing.shape) / NUM_COLUMNS**0.5
    X = rng.normal(size=(NUM_ROWS, NUM_COLUMNS)) @ mixing.T
    X /= X.std(axis=0)
    weights = 0.3 * rng.normal(size=(NUM_COLUMNS, NUM_CLASSES))
    return X, np.argmax(X @ weights + rng.gumbel(size=(NUM_ROWS, NUM_CLASSES)), axis=1)


def find_mode(X, y):
    """Return the mode and the variances that its curvature gives, rows by classes, bias last."""
    X = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    d = X.shape[1]
    w = np.zeros((d, NUM_CLASSES))
    for _ in range(8):
        p = np.exp(X @ w - np.max(X @ w, axis=1, keepdims=True))
        p /= np.sum(p, axis=1, keepdims=True)
        curvature = np.eye(NUM_CLASSES * d).reshape(NUM_CLASSES, d, NUM_CLASSES, d)
        for j in range(NUM_CLASSES):
            for k in range(j + 1):  # `cho_factor` reads the lower triangle
                weight = p[:, j] * ((j == k) - p[:, k])
                curvature[j, :, k] += X.T @ (weight[:, None] * X)
        factor = cho_factor(curvature.reshape(NUM_CLASSES * d, -1), lower=True)
        gradient = X.T @ (np.eye(NUM_CLASSES)[y] - p) - w
        w += cho_solve(factor, gradient.T.ravel()).reshape(NUM_CLASSES, d).T
    variance = np.diag(cho_solve(factor, np.eye(NUM_CLASSES * d)))
    return w, variance.reshape(NUM_CLASSES, d).T


def run(X, y, scales, mode, variance, preconditioner: str, num_warmup: int) -> dict:
    precision = jnp.asarray(scales**2, jnp.float32)

    def logdensity_fn(position, minibatch):
        x, label = minibatch
        logits = x @ position["kernel"] + position["bias"]
        loglikelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)
        prior = jnp.sum(precision @ position["kernel"] ** 2) + jnp.sum(position["bias"] ** 2)
        return -0.5 * prior + NUM_ROWS * jnp.mean(loglikelihood)

    data = jnp.asarray(X * scales, jnp.float32), jnp.asarray(y)
    result = blackjax_smile.sample(
        jax.random.key(1),
        logdensity_fn,
        {
            "kernel": jnp.zeros((4, NUM_COLUMNS, NUM_CLASSES)),
            "bias": jnp.zeros((4, NUM_CLASSES)),
        },
        blackjax_smile.minibatch_sampler(data, 200),
        preconditioner=preconditioner,
        num_warmup=num_warmup,
        num_samples=2000,
        thinning=10,
        progress_bar=False,
    )
    kernel = np.asarray(result.positions["kernel"], np.float64) * scales[:, None]
    bias = np.asarray(result.positions["bias"], np.float64)[:, :, None]
    z = (np.concatenate([kernel, bias], axis=2) - mode) / np.sqrt(variance)
    ratio = z.var(axis=(0, 1))
    return {
        **scores(z, result),
        "ratios": f"{ratio.min():.2f} {ratio.max():.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preconditioners", nargs="+", default=PRECONDITIONERS)
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    X, y = simulate()
    mode, variance = find_mode(X, y)
    scales = {
        "standardised": np.ones(NUM_COLUMNS),
        "raw": 10 ** np.random.default_rng(1).uniform(-2, 2, size=NUM_COLUMNS),
    }
    rows = []
    for columns, scale in scales.items():
        for name in args.preconditioners:
            found = run(X, y, scale, mode, variance, name, args.num_warmup)
            rows.append({"columns": columns, "preconditioner": name, **found})
            print_table(rows[-1:])
    report(rows, args.output)


if __name__ == "__main__":
    main()
