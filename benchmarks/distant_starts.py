"""How far from the posterior the warmup leaves chains that start at zero.

    python benchmarks/distant_starts.py

one_hot        normal regression on 5 numbers and the one-hot columns of 100 and 200 categories of
               unequal frequency; 50 000 rows, batch 500
one_hot_logit  the same for a binary outcome and 50 and 100 categories
rare_class     logistic regression on two numbers with an intercept of -5; 20 000 rows, batch 100
correlated     logistic regression on 50 correlated numbers; 20 000 rows, batch 200
counts         Poisson regression on 10 numbers with an intercept of 2; 20 000 rows, batch 200
overdispersed  negative binomial regression on 6 numbers, its shape unknown; 20 000 rows, batch 200
raw_outcome    normal regression on 4 numbers, its deviation unknown, of an outcome around 100 that
               was not standardised; 20 000 rows, batch 200
raw_amounts    gamma regression on 5 numbers, its shape unknown, of amounts around 400; the same

Priors N(0, 1), of raw_outcome and raw_amounts N(0, 100); eight chains from zero, nothing set by
hand. The distance of x from the mode is sqrt((x - mode)^T H (x - mode) / d), with H the negative
Hessian there: about 1 in the posterior.

warmup          number of gradients
median, largest distance after it
alignment       mean over the chains in the last window: about 0 in the posterior
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from tables import print_table, report

import blackjax_smile


def negative_binomial(eta, y, log_shape):
    shape = jnp.exp(log_shape)
    known = gammaln(y + shape) - gammaln(shape) + shape * log_shape
    return known + y * eta - (y + shape) * jnp.logaddexp(log_shape, eta)


def gamma(eta, y, log_shape):
    shape = jnp.exp(log_shape)
    log_ratio = jnp.log(y) - eta
    return shape * (log_shape + log_ratio - jnp.exp(log_ratio)) - gammaln(shape)


#: Of the linear predictor, the outcome and what else is unknown.
LOGLIKELIHOODS = {
    "normal": lambda eta, y: -0.5 * (y - eta) ** 2,
    "logit": lambda eta, y: y * eta - jax.nn.softplus(eta),
    "poisson": lambda eta, y: y * eta - jnp.exp(eta),
    "negative_binomial": negative_binomial,
    "normal_deviation": lambda eta, y, s: -0.5 * ((y - eta) * jnp.exp(-s)) ** 2 - s,
    "gamma": gamma,
}


class Problem(NamedTuple):
    """A generalised linear model; ``outcome``: ``(rng, eta) -> y``; what else is unknown."""

    columns: Callable
    outcome: Callable
    loglikelihood: str
    num_rows: int
    batch_size: int
    intercept: float
    scale: float = 1.0
    others: tuple[float, ...] = ()
    prior_deviation: float = 1.0

    def logprior(self, w):
        return -0.5 * jnp.sum((w / self.prior_deviation) ** 2)

    def loglikelihoods(self, w, X, y):
        k = X.shape[1]
        return LOGLIKELIHOODS[self.loglikelihood](X @ w[:k], y, *w[k:])


def bernoulli(rng, eta):
    return rng.random(len(eta)) < 1 / (1 + np.exp(-eta))


def numbers_and_categories(rng, num_rows, *num_categories):
    blocks = [rng.normal(size=(num_rows, 5))]
    for k in num_categories:
        weights = np.arange(1, k + 1) ** -0.7
        blocks.append(np.eye(k)[rng.choice(k, size=num_rows, p=weights / weights.sum())])
    return np.concatenate(blocks, axis=1)


def correlated(rng, num_rows, d):
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    mixing = rng.normal(size=(d, d)) * np.logspace(0, -1.5, d) @ rotation
    return 2 / np.sqrt(d) * rng.normal(size=(num_rows, d)) @ mixing


PROBLEMS = {
    "one_hot": Problem(
        lambda rng, n: numbers_and_categories(rng, n, 100, 200),
        lambda rng, eta: eta + rng.normal(size=len(eta)),
        *("normal", 50_000, 500, 3.0),
    ),
    "one_hot_logit": Problem(
        lambda rng, n: numbers_and_categories(rng, n, 50, 100),
        *(bernoulli, "logit", 50_000, 500, -2.0),
    ),
    "rare_class": Problem(
        lambda rng, n: rng.normal(size=(n, 2)), bernoulli, "logit", 20_000, 100, -5.0, 0.5
    ),
    "correlated": Problem(
        lambda rng, n: correlated(rng, n, 50), bernoulli, "logit", 20_000, 200, 0.0
    ),
    "counts": Problem(
        lambda rng, n: 0.3 * rng.normal(size=(n, 10)),
        lambda rng, eta: rng.poisson(np.exp(eta)),
        *("poisson", 20_000, 200, 2.0, 0.5),
    ),
    "overdispersed": Problem(
        lambda rng, n: 0.5 * rng.normal(size=(n, 6)),
        lambda rng, eta: rng.poisson(rng.gamma(1.5, np.exp(eta) / 1.5)),
        *("negative_binomial", 20_000, 200, 1.0, 1.0, (np.log(1.5),)),
    ),
    "raw_outcome": Problem(
        lambda rng, n: rng.normal(size=(n, 4)),
        lambda rng, eta: eta + 3 * rng.normal(size=len(eta)),
        *("normal_deviation", 20_000, 200, 100.0, 1.0, (np.log(3),), 10.0),
    ),
    "raw_amounts": Problem(
        lambda rng, n: 0.3 * rng.normal(size=(n, 5)),
        lambda rng, eta: rng.gamma(2, np.exp(eta) / 2),
        *("gamma", 20_000, 200, 6.0, 1.0, (np.log(2),), 10.0),
    ),
}


def make_data(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return columns, outcomes and the parameters behind them."""
    rng = np.random.default_rng(0)
    X = problem.columns(rng, problem.num_rows)
    effects = problem.scale * rng.normal(size=X.shape[1])
    y = problem.outcome(rng, problem.intercept + X @ effects)
    truth = np.r_[problem.intercept, effects, problem.others]
    return np.c_[np.ones(problem.num_rows), X], y, truth


def find_mode(problem: Problem, X, y, truth) -> tuple[np.ndarray, np.ndarray]:
    """Return the mode and the negative Hessian there."""
    with jax.enable_x64():
        X, y = jnp.asarray(X), jnp.asarray(y, float)

        def logdensity(w):
            return problem.logprior(w) + jnp.sum(problem.loglikelihoods(w, X, y))

        mode = jnp.asarray(truth)
        for _ in range(30):
            hessian = -jax.hessian(logdensity)(mode)
            mode += jnp.linalg.solve(hessian, jax.grad(logdensity)(mode))
        return np.asarray(mode), np.asarray(hessian)


def run(name: str, lengths: list[int], num_chains: int) -> list[dict]:
    problem = PROBLEMS[name]
    X, y, truth = make_data(problem)
    mode, hessian = find_mode(problem, X, y, truth)

    def distance(w):
        difference = np.asarray(w, np.float64) - mode
        return np.sqrt(np.einsum("ci,ij,cj->c", difference, hessian, difference) / len(mode))

    def logdensity_fn(w, minibatch):
        X, y = minibatch
        mean = jnp.mean(problem.loglikelihoods(w, X, y))
        return problem.logprior(w) + problem.num_rows * mean

    data = jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.float32)
    minibatch_fn = blackjax_smile.minibatch_sampler(data, problem.batch_size)
    warmup = blackjax_smile.smile_adaptation(blackjax_smile.smile, logdensity_fn, minibatch_fn)
    starts = jnp.zeros((num_chains, len(mode)))
    rows = []
    for num_steps in lengths:
        adapted = blackjax_smile.adapt_ensemble(jax.random.key(1), warmup, starts, num_steps)
        left = distance(adapted.state.position)
        rows.append(
            {
                "problem": name,
                "d": len(mode),
                "start": float(distance(starts)[0]),
                "warmup": num_steps,
                "median": float(np.median(left)),
                "largest": float(np.max(left)),
                "alignment": float(jnp.mean(adapted.info.windows.alignment[:, -1])),
            }
        )
        print_table(rows[-1:])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--num-warmup", nargs="+", type=int, default=[500, 1000, 2000, 4000])
    parser.add_argument("--num-chains", type=int, default=8)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    rows = []
    for name in args.problems:
        rows += run(name, args.num_warmup, args.num_chains)
    report(rows, args.output)


if __name__ == "__main__":
    main()
