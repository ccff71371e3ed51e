"""The analytic benchmark of arXiv:2602.06500: targets x gradient noise x samplers.

`python benchmarks/analytic_suite.py --output DIR` runs every cell that DIR/cells.jsonl does not
hold yet, one line per cell, and prints the table; stop it at any time. `--figures` draws it.

Error: b2 = mean_i (E[x_i^2] - exact)^2 / Var[x_i^2], the first tenth of a run left out; the mean
over the seeds. Samplers with a step size: the best of a grid by that mean. `smile` is adapted,
nothing set, and its warmup counts. Equal numbers of gradients.
"""

import argparse
import itertools
import json
import pathlib

import analytic_targets
import numpy as np
from analytic_methods import ADAPTED, METHODS, run_adapted, run_grid, step_size_grid
from tables import print_table

LAWS = ("normal", "laplace", "student5", "lognormal")


def noises():
    """Yield (structure, law): the four structures, and other laws of the first three."""
    yield from ((structure, "normal") for structure in analytic_targets.STRUCTURES)
    yield from itertools.product(("isotropic", "anisotropic", "correlated"), LAWS[1:])


def make_target(name: str, rotation: int) -> analytic_targets.Target:
    return (
        analytic_targets.gaussian(rotation)
        if name == "gaussian"
        else analytic_targets.TARGETS[name]()
    )


def run_cell(cell: dict) -> dict:
    """Run one cell; return its row: b2 of every seed and step size."""
    target = make_target(cell["target"], cell["rotation"])
    args = (target, cell["structure"], cell["law"], cell["num_gradients"], range(cell["seeds"]))
    row = dict(cell)
    if cell["method"] in ADAPTED:
        moments, rejected, seconds, parameters, windows = run_adapted(*args, start=cell["start"])
        row["step_sizes"] = [float(np.mean(parameters["step_size"]))]
        row["anisotropy"] = np.asarray(windows.anisotropy)[:, -1].tolist()
    else:
        grid = step_size_grid(cell["method"], cell["grid"])
        moments, rejected, seconds = run_grid(cell["method"], *args, grid, start=cell["start"])
        row["step_sizes"] = grid.tolist()
    row["b2"] = target.b2(np.mean(moments[1:], axis=0)).tolist()
    row["b2_last_half"] = target.b2(np.mean(moments[len(moments) // 2 :], axis=0)).tolist()
    row["rejected"] = np.mean(rejected, axis=(0, 1)).tolist()
    return row | {"seconds": seconds}


def finite_b2(row: dict) -> np.ndarray:
    """Return b2 of every seed and step size, infinite where a chain did not stay finite."""
    b2 = np.asarray(row["b2"], np.float64)
    return np.where(np.isfinite(b2), b2, np.inf)


def best(row: dict) -> dict:
    """Return a row of the table: the best step size by the mean over the seeds."""
    b2 = finite_b2(row)
    index = int(np.argmin(np.mean(b2, axis=0)))
    return {
        "target": row["target"],
        "structure": row["structure"],
        "law": row["law"],
        "method": row["method"],
        "b2": float(np.mean(b2[:, index])),
        "lowest": float(np.min(b2[:, index])),
        "highest": float(np.max(b2[:, index])),
        "per_seed": float(np.mean(np.min(b2, axis=1))),
        "step_size": row["step_sizes"][index],
        "at_edge": len(row["step_sizes"]) > 1 and index in (0, len(row["step_sizes"]) - 1),
        "rejected": row["rejected"][index],
        "seconds": row["seconds"],
    }


def key_of(cell: dict) -> str:
    return json.dumps({name: cell[name] for name in CELL_FIELDS}, sort_keys=True)


CELL_FIELDS = (
    *("target", "rotation", "structure", "law", "method"),
    *("num_gradients", "seeds", "grid", "start"),
)


def read_rows(path: pathlib.Path) -> dict[str, dict]:
    """Return the finished cells; a half-written last line is left out."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[key_of(row)] = row
    return rows


def run_suite(cells: list[dict], path: pathlib.Path) -> list[dict]:
    """Run what is missing, appending to ``path``; return all rows, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    if path.exists() and path.read_bytes() and not path.read_bytes().endswith(b"\n"):
        with path.open("a") as file:
            file.write("\n")
    for cell in cells:
        if key_of(cell) not in rows:
            row = run_cell(cell)
            rows[key_of(cell)] = row
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({k: v for k, v in best(row).items() if k != "at_edge"}, flush=True)
    return [rows[key_of(cell)] for cell in cells]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(analytic_targets.TARGETS))
    names = [*METHODS, *ADAPTED]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--structures", nargs="+", default=list(analytic_targets.STRUCTURES))
    parser.add_argument("--laws", nargs="+", default=list(LAWS))
    parser.add_argument("--rotations", nargs="+", type=int, default=[0])
    parser.add_argument("--num-gradients", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--grid", type=int, default=15)
    parser.add_argument("--start", choices=("draw", "zeros"), default="draw")
    parser.add_argument("--reduced", action="store_true", help="a few small cells, for CI")
    parser.add_argument("--figures", action="store_true")
    return parser.parse_args()


def cells_of(args: argparse.Namespace) -> list[dict]:
    if args.reduced:
        args.targets, args.methods = ["gaussian"], ["smile-naive", "psmile", "sgld", "smile"]
        args.structures, args.laws = ["anisotropic"], ["normal"]
        args.num_gradients, args.seeds, args.grid = 40_000, 2, 3
    wanted = [n for n in noises() if n[0] in args.structures and n[1] in args.laws]
    return [
        {
            **{"target": target, "rotation": rotation, "structure": structure, "law": law},
            **{"method": method, "num_gradients": args.num_gradients, "seeds": args.seeds},
            **{"grid": args.grid, "start": args.start},
        }
        for target, rotation, (structure, law), method in itertools.product(
            args.targets, args.rotations, wanted, args.methods
        )
        if target == "gaussian" or rotation == args.rotations[0]
    ]


def main() -> None:
    args = parse_arguments()
    rows = run_suite(cells_of(args), args.output / "cells.jsonl")
    print_table([best(row) for row in rows])
    if args.figures:
        from analytic_figures import draw_figures

        draw_figures([best(row) for row in rows], args.output)


if __name__ == "__main__":
    main()
