"""What a long run costs: memory, speed, files larger than memory, the progress bar.

    python benchmarks/long_run.py draws  --data FOLDER     # 1e6 draws kept, thinning 10
    python benchmarks/long_run.py file   --data FOLDER     # rows of an 8 GB file
    python benchmarks/long_run.py bar    --data FOLDER

draws   A softmax regression of 650 parameters, one chain, all draws to a store in FOLDER
        (2.6 GB, removed afterwards). Anonymous resident memory (/proc) is read every half
        second; the bar is on its range from 10 % to 100 % of the run. Draws per second
        against a compiled scan of the kernel alone, which keeps nothing, with the same
        parameters.
file    The same step fed with rows of a memory-mapped file of ``--gigabytes`` in FOLDER
        (written, then removed), with the process's anonymous memory limited to 2 GB
        (RLIMIT_DATA; the pages of the file are the system's cache and not counted), against
        the step fed from arrays in memory.
bar     Steps per second with the progress bar shown and without.
"""

import argparse
import os
import pathlib
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from tables import print_table, verdict

import blackjax_smile

FEATURES, CLASSES = 64, 10


def anonymous_memory() -> float:
    """Return this process's anonymous resident memory, in MB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class MemoryWatch(threading.Thread):
    """Reads the memory every half second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found, self.stopping = [], threading.Event()

    def run(self):
        while not self.stopping.wait(0.5):
            self.found.append((time.monotonic(), anonymous_memory()))


def rows_of(size: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, FEATURES)).astype(np.float32)
    truth = rng.normal(size=(FEATURES, CLASSES)) / 4
    y = np.argmax(x @ truth + rng.gumbel(size=(size, CLASSES)), axis=1)
    return np.concatenate([x, y[:, None].astype(np.float32)], axis=1)


def softmax_model(size: int):
    """Return a log-density of 650 parameters, and a start."""

    def logdensity_fn(position, rows):
        x, y = rows[:, :FEATURES], rows[:, FEATURES].astype(jnp.int32)
        logits = x @ position["weights"] + position["bias"]
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        prior = sum(jnp.sum(leaf**2) for leaf in position.values())
        return -0.5 * prior + size * jnp.mean(log_probability)

    return logdensity_fn, {"weights": jnp.zeros((FEATURES, CLASSES)), "bias": jnp.zeros(CLASSES)}


def network_model(size: int, hidden: int = 256):
    """Return a log-density of a network with one hidden layer, and a start."""

    def logdensity_fn(position, rows):
        x, y = rows[:, :FEATURES], rows[:, FEATURES].astype(jnp.int32)
        logits = jnp.tanh(x @ position["first"]) @ position["second"]
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        prior = sum(jnp.sum(leaf**2) for leaf in position.values())
        return -0.5 * prior + size * jnp.mean(log_probability)

    keys = jax.random.split(jax.random.key(0))
    return logdensity_fn, {
        "first": jax.random.normal(keys[0], (FEATURES, hidden)) / 8,
        "second": jax.random.normal(keys[1], (hidden, CLASSES)) / 16,
    }


def stacked(position):
    return jax.tree.map(lambda x: x[None], position)


def bare_steps_per_second(logdensity_fn, minibatch_fn, result, num_steps: int) -> float:
    """Time a compiled scan of the kernel with a run's parameters, which keeps nothing."""
    parameters, state = jax.tree.map(lambda x: x[0], (result.parameters, result.states))
    algorithm = blackjax_smile.with_minibatches(
        blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn
    )

    @jax.jit
    def scan(state, keys):
        return jax.lax.scan(lambda state, key: (algorithm.step(key, state)[0], None), state, keys)

    keys = jax.random.split(jax.random.key(5), num_steps)
    jax.block_until_ready(scan(state, keys))
    start = time.monotonic()
    jax.block_until_ready(scan(state, keys))
    return num_steps / (time.monotonic() - start)


def timed_sample(logdensity_fn, position, minibatches, num_samples, thinning=10, **options):
    """Return a run, its steps per second of sampling alone, and when its last part ran.

    It is extended twice; the difference leaves out tracing and compilation.
    """
    arguments = (jax.random.key(1), logdensity_fn, stacked(position), minibatches)
    options = {"num_warmup": 500, "thinning": thinning, "preconditioner": "diagonal", **options}
    options.setdefault("progress_bar", False)
    few = num_samples // 20
    seconds = []
    for total in (few, 2 * few, num_samples):
        start = time.monotonic()
        result = blackjax_smile.sample(*arguments, num_samples=total, **options)
        end = time.monotonic()
        seconds.append(end - start)
    rate = (num_samples - 3 * few) * thinning / (seconds[2] - seconds[1])
    return result, rate, (start, end)


def draws(args) -> None:
    data = rows_of(20_000)
    logdensity_fn, position = softmax_model(len(data))
    minibatch_fn = blackjax_smile.minibatch_sampler(data, args.batch_size)
    store = args.data / "draws.zarr"
    watch = MemoryWatch()
    watch.start()
    result, rate, (start, end) = timed_sample(
        logdensity_fn, position, minibatch_fn, args.num_samples, store=store
    )
    watch.stopping.set()
    memory = [(t, m) for t, m in watch.found if start + 0.1 * (end - start) <= t <= end]
    values = [m for _, m in memory]
    bare = bare_steps_per_second(logdensity_fn, minibatch_fn, result, 100_000)
    size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    growth = max(values) / values[0] - 1
    print_table(
        [
            {
                "draws": args.num_samples,
                "store, MB": size / 1e6,
                "memory at 10 %, MB": values[0],
                "largest after": max(values),
                "at the end": values[-1],
                "flat": f"{verdict(growth < 0.1)} (< 10 %)",
                "steps/s": rate,
                "bare scan": bare,
                "share": rate / bare,
                "speed": f"{verdict(rate > 0.9 * bare)} (> 0.9)",
            }
        ]
    )
    shutil.rmtree(store)
    shutil.rmtree(f"{store}.checkpoint")


def write_rows(path: pathlib.Path, num_rows: int) -> None:
    block = rows_of(2**18)
    with path.open("wb") as file:
        written = 0
        while written < num_rows:
            part = block[: num_rows - written]
            part.tofile(file)
            written += len(part)


def file(args) -> None:
    width = FEATURES + 1
    num_rows = int(args.gigabytes * 1e9) // (4 * width)
    path = args.data / "rows.f32"
    write_rows(path, num_rows)
    rows = np.memmap(path, np.float32, "r", shape=(num_rows, width))
    in_memory = rows_of(200_000)
    found = []
    for name, hidden, num_samples in (("650 parameters", 0, 3000), ("network", 256, 1500)):
        model = network_model if hidden else softmax_model
        logdensity_fn, position = model(200_000)
        rates = {}
        for kind, minibatches in (
            ("in memory", blackjax_smile.minibatch_sampler(in_memory, args.batch_size)),
            ("file", rows),
        ):
            options = {} if kind == "in memory" else {"batch_size": args.batch_size}
            store = args.data / "file.zarr"
            watch = MemoryWatch()
            watch.start()
            _, rates[kind], _ = timed_sample(
                logdensity_fn, position, minibatches, num_samples, store=store, **options
            )
            watch.stopping.set()
            shutil.rmtree(store)
            shutil.rmtree(f"{store}.checkpoint")
        ratio = rates["in memory"] / rates["file"]
        found.append(
            {
                "model": name,
                "file, GB": path.stat().st_size / 1e9,
                "step, ms, in memory": 1e3 / rates["in memory"],
                "from the file": 1e3 / rates["file"],
                "ratio": ratio,
                "bar": f"{verdict(ratio < 1.3)} (< 1.3)",
                "largest memory, MB": max(m for _, m in watch.found),
            }
        )
    path.unlink()
    print_table(found)


def bar(args) -> None:
    data = rows_of(20_000)
    logdensity_fn, position = softmax_model(len(data))
    minibatch_fn = blackjax_smile.minibatch_sampler(data, args.batch_size)
    found = []
    for repeat in range(3):
        for shown in (False, "force"):
            store = args.data / "bar.zarr"
            _, rate, _ = timed_sample(
                logdensity_fn, position, minibatch_fn, 20_000, store=store, progress_bar=shown
            )
            found.append({"repeat": repeat, "shown": str(shown), "steps/s": rate})
            shutil.rmtree(store)
            shutil.rmtree(f"{store}.checkpoint")
    print_table(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("draws", "file", "bar"))
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("BLACKJAX_SMILE_DATA"))
    parser.add_argument("--num-samples", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data (or BLACKJAX_SMILE_DATA) names a folder for files")
    args.data = pathlib.Path(args.data)
    args.data.mkdir(parents=True, exist_ok=True)
    if args.what == "file":
        resource.setrlimit(resource.RLIMIT_DATA, (2 * 10**9, 2 * 10**9))
    {"draws": draws, "file": file, "bar": bar}[args.what](args)


if __name__ == "__main__":
    main()
