"""Bayesian networks on UCI tables: `smile` beside other minibatch samplers and full batch.

    python benchmarks/uci_networks.py --data FOLDER --tables airfoil bikesharing
    python benchmarks/uci_networks.py --data FOLDER --methods smile --seeds 1 --sensitivity

MLP 16-16-16, normal likelihood with an unknown scale, N(0, 1) priors; rows permuted
by the seed, 70/10/20 training, validation and test, standardised by the training
rows. All samplers start from the same trained networks (AdamW, early stopping) and
take the same number of gradients of 256 rows per chain, of which the first third
(``--num-warmup``) is warmup. For
`smile` nothing is set by hand; the step size of sgld, sghmc and the naive SMILE (diagonal
map, no refresh) is the best of a grid by the validation LPPD on the first seed.

NUTS runs on the first few of the starts, and is compared with the chains of `smile`
from the same.

LPPD: mean over test rows of log mean over chains and draws of the predictive density.
Every finished run is a file in the output folder; a second call goes on from there.
"""

import argparse
import os
import pathlib
import time

import jax
import numpy as np
import uci_data
import uci_model
import uci_samplers as samplers
from tables import print_table, verdict, write_csv
from uci_model import lppd
from uci_sensitivity import SENSITIVITY, sensitivity

CHAINS = {"airfoil": 10, "bikesharing": 4}
BARS = {"airfoil": 0.53, "bikesharing": 0.145}
CEILING_GAP = 0.05

#: Step sizes to choose from, by validation LPPD; for the naive SMILE as multiples of
#: the step size that the warmup found.
GRIDS = {
    "sgld": {
        "airfoil": (1e-6, 3e-6, 1e-5, 3e-5, 1e-4),
        "bikesharing": (1e-7, 3e-7, 1e-6, 3e-6, 1e-5),
    },
    "sghmc": {
        "airfoil": (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "bikesharing": (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    },
    "naive": {"airfoil": (0.1, 0.3, 1.0, 3.0), "bikesharing": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)},
}
METHODS = ("ensemble", "smile", "diagonal", "dense", "sgld", "sghmc", "naive", "nuts")
MINIBATCH_RIVALS = ("diagonal", "sgld", "sghmc", "naive")


def run_method(problem, method: str, num_warmup: int, args, step_size=None, **options):
    if method == "ensemble":
        return samplers.ensemble(problem)
    if method in ("smile", "diagonal", "dense"):
        name = "kronecker" if method == "smile" else method
        return samplers.smile(problem, name, num_warmup, **options)
    if method == "naive":
        return samplers.naive_smile(problem, step_size, num_warmup)
    if method == "nuts":
        return samplers.nuts(problem, args.nuts_warmup, args.nuts_samples)
    return samplers.stochastic_gradient(problem, method, step_size, num_warmup)


class Runs:
    """Finished runs as files, made when they are missing."""

    def __init__(self, args):
        self.args, self.folder = args, pathlib.Path(args.output)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, table: str, seed: int, method: str, step_size=None, variant="", repeat=0, **options
    ):
        label = "_".join(filter(None, [table, str(seed), method, variant.replace(" ", "")]))
        label += "" if step_size is None else f"_{step_size:g}"
        label += f"_repeat{repeat}" if repeat else ""
        path = self.folder / f"{label}.npz".replace("/", "-")
        if not path.exists():
            self._make(path, table, seed, method, step_size, repeat, **options)
        return dict(np.load(path))

    def _make(self, path, table, seed, method, step_size, repeat, **options):
        args = self.args
        began = time.perf_counter()
        data = uci_data.load(table, seed, args.data)
        num_chains = args.chains or CHAINS[table]
        starts = uci_model.warm_starts(jax.random.key(seed), data, num_chains)
        num_warmup, num_gradients = self.lengths(options)
        options = {k: v for k, v in options.items() if k not in ("num_warmup", "num_gradients")}
        if method == "nuts":
            starts = jax.tree.map(lambda x: x[: args.nuts_chains], starts)
        key = jax.random.key(100 + seed)
        key = jax.random.fold_in(key, repeat) if repeat else key
        problem = samplers.Problem(data, starts, num_gradients, key)
        draws, extra = run_method(problem, method, num_warmup, args, step_size, **options)
        kept = {name: np.asarray(x) for name, x in {**draws._asdict(), **extra}.items()}
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **kept)
        os.replace(partial, path)
        seconds = time.perf_counter() - began
        print(f"{path.stem}: LPPD {lppd(kept['test_logs']):.3f}, {seconds:.0f} s", flush=True)

    def lengths(self, options: dict) -> tuple[int, int]:
        """Return the gradients of the warmup and of the whole run.

        A longer warmup does not shorten the run, nor does a shorter one prolong it.
        """
        args = self.args
        num_warmup = options.get("num_warmup", args.num_warmup)
        num_gradients = args.num_gradients - args.num_warmup + num_warmup
        return num_warmup, options.get("num_gradients", num_gradients)

    def best_step_size(self, table: str, method: str) -> float:
        grid = GRIDS[method][table]
        seed = self.args.seeds[0]
        scores = [
            lppd(self.get(table, seed, method, step_size)["validation_logs"]) for step_size in grid
        ]
        return grid[int(np.nanargmax(scores))]


def summary(runs: list[dict]) -> dict:
    """Return the table's cells for the runs of several seeds."""
    scores = [lppd(run["test_logs"]) for run in runs]
    by_chain = np.array([[lppd(chain[None]) for chain in run["test_logs"]] for run in runs])
    cells = {
        "LPPD": float(np.mean(scores)),
        "by seed": " ".join(f"{score:.3f}" for score in scores),
        "chain mean": float(np.mean(by_chain)),
        "chain sd": float(np.mean(np.std(by_chain, axis=1))),
        "rejected": float(np.mean([1 - np.mean(run["accepted"]) for run in runs])),
    }
    for name in ("anisotropy", "L / step_size"):
        known = [np.median(run[name]) for run in runs if name in run]
        cells[name] = float(np.mean(known)) if known else ""
    return cells


def compare(table: str, runs: Runs) -> list[dict]:
    args, rows, scores = runs.args, [], {}
    for method in args.methods:
        step_size = runs.best_step_size(table, method) if method in GRIDS else None
        found = [runs.get(table, seed, method, step_size) for seed in args.seeds]
        cells = summary(found)
        scores[method] = cells["LPPD"]
        if method == "smile":
            fewer = [{**run, "test_logs": run["test_logs"][: args.nuts_chains]} for run in found]
            scores["smile, fewer chains"] = summary(fewer)["LPPD"]
        shown = "" if step_size is None else step_size
        rows.append({"table": table, "method": method, "step size": shown, **cells, "bar": ""})
    for row in rows:
        if row["method"] == "smile":
            row["bar"] = verdicts(table, scores)
    return rows


def verdicts(table: str, scores: dict) -> str:
    smile = scores["smile"]
    found = [f"{BARS[table]}: {verdict(smile >= BARS[table])}"]
    if "nuts" in scores:
        fewer = scores["smile, fewer chains"]
        found.append(f"{fewer:.3f} of full batch: {verdict(fewer >= scores['nuts'] - CEILING_GAP)}")
    rivals = [scores[method] for method in MINIBATCH_RIVALS if method in scores]
    if rivals:
        found.append(f"minibatch: {verdict(smile > max(rivals))}")
    return ", ".join(found)


def against_nuts(table: str, runs: Runs) -> list[dict]:
    """Predictive means and deviations, chain by chain, beside NUTS from the same start."""
    rows = []
    for seed in runs.args.seeds:
        ours, theirs = (runs.get(table, seed, name)["predictions"] for name in ("smile", "nuts"))
        ours = ours[: len(theirs)]
        means, deviations = zip(
            *((x.mean(axis=1), x.std(axis=1)) for x in (ours, theirs)), strict=True
        )
        rows.append(
            {
                "table": table,
                "seed": seed,
                "correlation of means": mean_correlation(*means),
                "of deviations": mean_correlation(*deviations),
                "ratio of deviations": float(np.mean(deviations[0]) / np.mean(deviations[1])),
                "pooled ratio": float(
                    np.mean(ours.std(axis=(0, 1))) / np.mean(theirs.std(axis=(0, 1)))
                ),
            }
        )
    return rows


def mean_correlation(a, b) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help=f"folder of the tables; default ${uci_data.ENVIRONMENT}")
    parser.add_argument("--output", default="uci_runs", help="folder of finished runs")
    parser.add_argument("--tables", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--chains", type=int, help="default: 10 (airfoil), 4 (bikesharing)")
    parser.add_argument("--num-gradients", type=int, default=60_000, help="per chain")
    parser.add_argument("--num-warmup", type=int, default=20_000, help="of these gradients")
    parser.add_argument("--nuts-chains", type=int, default=4, help="the first of them")
    parser.add_argument("--nuts-warmup", type=int, default=2000)
    parser.add_argument("--nuts-samples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1, help="other chains (--sensitivity)")
    parser.add_argument(
        "--variants", nargs="+", choices=SENSITIVITY, default=list(SENSITIVITY), help="of the same"
    )
    parser.add_argument("--sensitivity", action="store_true", help="vary what should not matter")
    parser.add_argument("--against-nuts", action="store_true", help="predictive quality")
    args = parser.parse_args()

    runs, rows = Runs(args), []
    for table in args.tables:
        if args.sensitivity:
            rows += sensitivity(table, runs)
        elif args.against_nuts:
            rows += against_nuts(table, runs)
        else:
            rows += compare(table, runs)
    print_table(rows)
    write_csv(str(runs.folder / "table.csv"), rows)


if __name__ == "__main__":
    main()
