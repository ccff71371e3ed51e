"""Peak memory of the warmup beyond its gradient's, in copies of the parameters.

    python benchmarks/adaptation_memory.py

`smile_adaptation` with a diagonal preconditioner on a network of 1e6 parameters,
against the gradients of the two halves of a minibatch alone. Rows:

compiled   temporary and output buffers, as XLA's memory analysis has them
resident   growth of the resident set from after the compilation to its peak (Linux), each
           in a process of its own: a cross-check, blurred by what allocators keep

Columns, in MB: the warmup's, the gradient's; ``copies`` is the difference in copies
of the parameters.
"""

import argparse
import ctypes
import gc
import pathlib
import subprocess
import sys

import jax
from blackjax.util import pytree_size
from network import init_parameters, logdensity_fn, random_minibatch_fn
from tables import print_table, verdict

import blackjax_smile

BAR = 12


def functions(num_steps: int) -> dict:
    minibatch_fn = random_minibatch_fn(jax.random.key(3))
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner="diagonal"
    )

    def adaptation(rng_key, position):
        return warmup.run(rng_key, position, num_steps=num_steps)

    def gradient(rng_key, position):
        halves = jax.tree.map(
            lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), minibatch_fn(rng_key)
        )
        return jax.vmap(jax.value_and_grad(logdensity_fn), (None, 0))(position, halves)

    return {"adaptation": adaptation, "gradient": gradient}


def compiled_bytes(function, position) -> int:
    compiled = jax.jit(function).lower(jax.random.key(0), position).compile()
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def resident_bytes(name: str, num_steps: int) -> int:
    """Run in a process of its own, which prints by how much its resident set grew."""
    command = [sys.executable, __file__, "--only", name, "--num-steps", str(num_steps)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def proc_status(name: str) -> int:
    """Return an entry of this process's status, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def run_only(name: str, num_steps: int) -> None:
    position = jax.block_until_ready(init_parameters(jax.random.key(0)))
    function = jax.jit(functions(num_steps)[name]).lower(jax.random.key(0), position).compile()
    # The compiler's own memory is freed, and the mark of the peak set back.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = proc_status("VmRSS")
    jax.block_until_ready(function(jax.random.key(0), position))
    print(proc_status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--only", choices=("adaptation", "gradient"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return run_only(args.only, args.num_steps)

    position = init_parameters(jax.random.key(0))
    copy = 4 * pytree_size(position)
    compiled = {
        name: compiled_bytes(function, position)
        for name, function in functions(args.num_steps).items()
    }
    resident = {name: resident_bytes(name, args.num_steps) for name in compiled}
    rows = []
    for measure, found in (("compiled", compiled), ("resident", resident)):
        copies = (found["adaptation"] - found["gradient"]) / copy
        row = {"measure": measure, **{name: size / 1e6 for name, size in found.items()}}
        bar = f"{verdict(copies < BAR)} (< {BAR})"
        rows.append({**row, "copies": copies, "bar": bar if measure == "compiled" else ""})
    print(f"one copy of the parameters: {copy / 1e6:.3g} MB")
    return print_table(rows)


if __name__ == "__main__":
    main()
