"""What a data loader that shuffles and goes through its epochs does to the posterior.

    python benchmarks/shuffled_epochs.py

The mean of a normal law in five dimensions, exact posterior. Four chains, each fed with
minibatches of its own: rows drawn independently, or every row once in an epoch. Nothing set by
hand; 3000 + 40 000 gradients. Then by `blackjax_smile.sample`, whose chains take turns from one
such loader, or share its minibatches; 100 minibatches in an epoch.

ratio       variance of the draws around the exact mean over the exact variance, mean over
            coordinates and chains, with the standard error over the chains
anisotropy  of the whitened noise in the last window, mean over the chains
"""

import argparse
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tables import print_table, with_error

import blackjax_smile

DIMENSION, NUM_CHAINS, NUM_WARMUP = 5, 4, 3000


def indices(rng: np.random.Generator, kind: str, data_size: int, batch_size: int) -> Iterator:
    """Yield the rows of one minibatch after another."""
    while True:
        if kind == "independent":
            yield rng.integers(0, data_size, batch_size)
        else:
            yield from rng.permutation(data_size)[: data_size // batch_size * batch_size].reshape(
                -1, batch_size
            )


def problem(data_size: int) -> tuple:
    """Return data, the exact posterior mean, and the log-density."""
    rng = np.random.default_rng(0)
    data = (1 + rng.normal(size=(data_size, DIMENSION))).astype(np.float32)

    def logdensity_fn(x, batch):
        squares = jnp.sum((batch - x) ** 2, axis=1)
        return -0.5 * x @ x - 0.5 * data_size * jnp.mean(squares)

    return data, data.astype(np.float64).sum(axis=0) / (data_size + 1), logdensity_fn


def run(kind: str, data_size: int, batch_size: int, num_steps: int) -> dict:
    data, exact_mean, logdensity_fn = problem(data_size)

    def sample(rng_key, state, parameters, rows):
        algorithm = blackjax_smile.smile(logdensity_fn, **parameters)

        def step(state, xs):
            state, _ = algorithm.step(xs[0], state, jnp.asarray(data)[xs[1]])
            return state, state.position

        return jax.lax.scan(step, state, (jax.random.split(rng_key, len(rows)), rows))[1]

    ratios, anisotropies = [], []
    for chain in range(NUM_CHAINS):
        rows = indices(np.random.default_rng(chain), kind, data_size, batch_size)
        warmup = blackjax_smile.smile_adaptation(
            blackjax_smile.smile, logdensity_fn, (data[i] for i in rows)
        )
        warmup_key, sample_key = jax.random.split(jax.random.key(chain))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of just this
            (state, parameters), info = warmup.run(
                warmup_key, jnp.asarray(data.mean(axis=0)), num_steps=NUM_WARMUP
            )
        ids = np.stack([next(rows) for _ in range(num_steps)])
        draws = np.asarray(jax.jit(sample)(sample_key, state, parameters, ids), np.float64)
        ratios.append(np.mean((draws - exact_mean) ** 2) * (data_size + 1))
        anisotropies.append(float(info.windows.anisotropy[-1]))
    return {
        "minibatches": kind,
        "in an epoch": data_size // batch_size,
        "ratio": with_error(ratios),
        "anisotropy": float(np.mean(anisotropies)),
    }


def run_in_turn(num_chains: int, share: bool, num_steps: int) -> dict:
    data, exact_mean, logdensity_fn = problem(5000)
    loader = indices(np.random.default_rng(1), "epochs", 5000, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of just this
        result = blackjax_smile.sample(
            jax.random.key(0),
            logdensity_fn,
            jnp.tile(jnp.asarray(data.mean(axis=0)), (num_chains, 1)),
            (data[rows] for rows in loader),
            num_warmup=NUM_WARMUP,
            num_samples=num_steps // 10,
            thinning=10,
            share_minibatches=share,
            progress_bar=False,
        )
    squares = (np.asarray(result.positions, np.float64) - exact_mean) ** 2
    ratios = np.mean(squares, axis=(1, 2)) * (len(data) + 1)
    return {
        "chains": num_chains,
        "share_minibatches": share,
        "ratio": with_error(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=40_000)
    args = parser.parse_args()
    print_table(
        [
            run(kind, data_size, batch_size, args.num_steps)
            for data_size, batch_size in ((5000, 50), (2000, 100))
            for kind in ("independent", "epochs")
        ]
    )
    turns = [(1, False), (2, False), (4, False), (8, False), (4, True)]
    print_table([run_in_turn(num, share, args.num_steps) for num, share in turns])


if __name__ == "__main__":
    main()
