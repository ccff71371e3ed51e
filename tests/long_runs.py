"""The small run that the tests of store, checkpoints and devices share; also a command.

    python long_runs.py STORE RESULT [PROCESS PORT]

runs it as a process of its own (of two, with PROCESS 0 or 1), for tests that kill it.
"""

import os
import pathlib
import shutil
import sys

import jax

if __name__ == "__main__" and len(sys.argv) == 5:
    # Before anything computes: helpers and blackjax do when they are imported.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{sys.argv[4]}", 2, int(sys.argv[3]), heartbeat_timeout_seconds=10
    )

import jax.numpy as jnp
import numpy as np

import blackjax_smile
from helpers import LinearRegression

PROBLEM = LinearRegression()
BATCH = 20
#: 400 gradients of warmup and 300 of sampling, for each of two chains.
NUM_GRADIENTS = 2 * 700


def host_minibatches(count=None, watch=lambda i: None):
    """A generator of minibatches, the same ones at each call; ``watch`` sees the number."""
    rng = np.random.default_rng(0)
    X, y = PROBLEM.data
    i = 0
    while count is None or i < count:
        watch(i)
        indices = rng.integers(0, len(X), BATCH)
        yield X[indices], y[indices]
        i += 1


def sample(store=None, minibatches=None, num_chains=2, **options):
    """A checkpoint for each piece of the run, and a chunk of 16 draws."""
    defaults = {
        "num_warmup": 400,
        "num_samples": 100,
        "thinning": 3,
        "chunk_size": 16,
        "checkpoint_every": 0.0,
        "progress_bar": False,
    }
    options = {"positions": jnp.tile(PROBLEM.mode, (num_chains, 1)), **defaults, **options}
    return blackjax_smile.sample(
        options.pop("rng_key", jax.random.key(0)),
        options.pop("logdensity_fn", PROBLEM.logdensity_fn),
        options.pop("positions"),
        host_minibatches() if minibatches is None else minibatches,
        store=store,
        **options,
    )


def stop_after(count, store, **options):
    """Run until the minibatches end, after ``count`` of `NUM_GRADIENTS`."""
    try:
        sample(store, host_minibatches(count), **options)
    except ValueError as error:
        assert "ended after" in str(error)  # noqa: PT017
        return
    raise AssertionError("the run was not stopped")


def copy(store, to):
    """Copy a store and its checkpoints."""
    to = pathlib.Path(to)
    for suffix in ("", ".checkpoint"):
        shutil.copytree(f"{store}{suffix}", f"{to}{suffix}")
    return to


def everything(result):
    """All that must be the same, bit for bit."""
    leaves = jax.tree.leaves((result.states, result.parameters, result.adaptation[1:]))
    arrays = [*leaves, *result.draws.values(), *result.statistics.values()]
    return [np.asarray(array[...]) for array in arrays]


def assert_identical(result, expected):
    for a, b in zip(everything(result), everything(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def main():
    store, target, *process = sys.argv[1:]
    mesh, minibatches = None, None
    if process:
        mesh = jax.make_mesh((jax.device_count(),), ("chains",))
        minibatches = PROBLEM.minibatch_fn(BATCH)
    print("started", flush=True)
    result = sample(store, minibatches, mesh=mesh)
    if process:
        if process[0] == "0":
            np.savez(target, *[np.asarray(values[...]) for values in result.draws.values()])
    else:
        np.savez(target, *everything(result))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
