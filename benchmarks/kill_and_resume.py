"""Kill a run at random moments, resume it, and compare with a run that was left alone.

    python benchmarks/kill_and_resume.py [--kills 20]

Each trial starts the same command on empty folders, kills it (SIGKILL) at a moment
uniform over the length of an undisturbed run, starts it again and lets it end. Minibatches
come from a generator on the host, which the resumed run has to take up where it was.
The run writes a checkpoint for each chunk of 80 draws, so most of its time is writing.

phase      what the checkpoints held when it was killed: nothing, warmup, sampling, done
draws      in the store at that moment
partial    half-written files left in store and checkpoint folder
identical  all draws, statistics, final states and parameters equal, bit for bit, to the
           undisturbed run's, and no draw missing or twice
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from tables import print_table

import blackjax_smile

D, ROWS, BATCH, CHAINS = 5, 2000, 20, 2
NUM_SAMPLES, CHUNK = 800, 80


def minibatches(data, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        indices = rng.integers(0, ROWS, BATCH)
        yield data[0][indices], data[1][indices]


def run(store: pathlib.Path):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(ROWS, D)).astype(np.float32)
    y = (X.sum(1) + rng.normal(size=ROWS)).astype(np.float32)

    def logdensity_fn(theta, batch):
        return -0.5 * theta @ theta - 0.5 * ROWS * jnp.mean((batch[1] - batch[0] @ theta) ** 2)

    return blackjax_smile.sample(
        jax.random.key(0),
        logdensity_fn,
        jnp.ones((CHAINS, D)),
        minibatches((X, y)),
        num_warmup=400,
        num_samples=NUM_SAMPLES,
        thinning=4,
        store=store,
        checkpoint_every=0,
        chunk_size=CHUNK,
        progress_bar=False,
    )


def child(store: pathlib.Path) -> None:
    print("started", flush=True)
    result = run(store)
    leaves = [*jax.tree.leaves((result.states, result.parameters)), result.positions]
    leaves += [np.asarray(values[...]) for values in result.statistics.values()]
    np.savez(store.with_suffix(".npz"), *map(np.asarray, leaves))


def start(store: pathlib.Path, cache: str) -> subprocess.Popen:
    # What was compiled once is read from a cache, so that kills fall on the run itself.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(store)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def look(store: pathlib.Path) -> dict:
    """What a killed run left, told from its folders alone."""
    checkpoint = pathlib.Path(f"{store}.checkpoint")
    adapted, steps = (
        [p for p in (checkpoint / name).glob("*") if p.name.isdigit()]
        for name in ("adapted", "steps")
    )
    phase = "sampling" if adapted else "warmup" if steps else "nothing"
    partial = [*store.rglob("*.partial"), *checkpoint.rglob("*tmp*")]
    draws = 0
    if (store / "zarr.json").exists():
        import xarray

        draws = xarray.open_datatree(store, engine="zarr")["posterior"].sizes["draw"]
    if store.with_suffix(".npz").exists():
        phase = "done"
    return {"phase": phase, "draws": draws, "partial": len(partial)}


def same(store: pathlib.Path, reference) -> bool:
    with np.load(store.with_suffix(".npz")) as found:
        equal = len(found.files) == len(reference.files) and all(
            found[name].tobytes() == reference[name].tobytes() for name in reference.files
        )
    import xarray

    draws = xarray.open_datatree(store, engine="zarr")["posterior"]["draw"].values
    return equal and np.array_equal(draws, np.arange(NUM_SAMPLES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    rng = np.random.default_rng(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "reference.zarr"
        for name in ("first.zarr", "reference.zarr"):
            process = start(pathlib.Path(folder) / name, folder + "/cache")
            begin = time.monotonic()
            assert process.wait() == 0
        length = time.monotonic() - begin
        print(f"undisturbed run: {length:.1f} s", flush=True)
        reference = np.load(store.with_suffix(".npz"))
        for kill in range(args.kills):
            store = pathlib.Path(folder) / f"{kill}.zarr"
            process = start(store, folder + "/cache")
            moment = rng.uniform(0, length)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            row = {"kill": kill, "second": moment, **look(store)}
            begin = time.monotonic()
            process = start(store, folder + "/cache")
            assert process.wait() == 0
            row["resumed in"] = time.monotonic() - begin
            row["identical"] = same(store, reference)
            rows.append(row)
            print(row, flush=True)
    print_table(rows)
    print(f"{sum(row['identical'] for row in rows)} of {len(rows)} identical")
    return None


if __name__ == "__main__":
    main()
