"""Accuracy of `smile` on Bayesian logistic regressions, nothing set by hand.

    python benchmarks/logistic_regression.py                     # all variants
    python benchmarks/logistic_regression.py --control-variates
    python benchmarks/logistic_regression.py --peers --variants base d100 spread300
    python benchmarks/logistic_regression.py --full-batch

Each row is a mean over chains (seeds) that start at the mode and warm up for 2000
steps unless the variant says otherwise. Columns:

b2mean     mean over parameters of (bias of the mean)^2 / posterior variance
b2var      mean over parameters of (variance ratio - 1)^2 / 2
ratio      mean over parameters of sampled / true variance
rejected   share of rejected steps
anisotropy of the whitened noise in the last window of the warmup; 0 is white
bar        whether the errors are below the bars in regression_variants.py

``--control-variates`` wraps the log-density, centred at the start; 10 000 steps.
``--peers`` adds BlackJAX's SGLD and SGHMC with the same number of gradients, the
warmup's included, at the best of at least 9 step sizes. ``--full-batch`` counts
passes over the data: two gradients a step of control variates and one pass for the
centre, against BlackJAX's NUTS and MCLMC and their own adaptation at the best of
several warmup lengths, until both errors are reached. All start at the mode.
"""

import argparse
import time

from regression_full_batch import cheapest
from regression_peers import search
from regression_variants import VARIANTS, Bars, Variant, run_smile
from tables import print_table, report, verdict

from blackjax_smile import control_variates

CV_VARIANTS = ("base", "batch20", "batch2000", "d5", "d100", "spread300")
CV_BARS = Bars(b2mean=0.005, b2var=0.005)
FULL_BATCH_VARIANTS = ("base", "batch20")


def centred(variant: Variant):
    problem = variant.problem
    return control_variates(problem.logdensity_fn, variant.start, problem.data)


def describe(name: str, variant: Variant) -> dict:
    return {"variant": name, "d": variant.problem.d, "batch": variant.batch_size}


def plain(name: str, args) -> list[dict]:
    variant = VARIANTS[name]
    num_steps = args.num_steps or 100_000
    row = run_smile(variant, variant.problem.logdensity_fn, num_steps, args.seeds)
    bar = variant.bars.verdict(row)
    if variant.share_corrupted:
        clean = VARIANTS["base"]
        logdensity_fn = clean.problem.logdensity_fn
        b2var = run_smile(clean, logdensity_fn, num_steps, args.seeds)["b2var"]
        bar = f"{verdict(row['b2var'] <= 2 * b2var)} (clean b2var {b2var:.3g})"
    rows = [{**describe(name, variant), "sampler": "smile", **row, "bar": bar}]
    if args.peers:
        rows += compared(name, variant, row, variant.num_warmup + num_steps, args.seeds)
    return rows


def compared(name: str, variant: Variant, row: dict, num_gradients: int, seeds: int) -> list[dict]:
    rows = []
    for peer in ("sgld", "sghmc"):
        best = search(peer, variant, num_gradients, seeds)
        wins = best["b2mean"] + best["b2var"] > row["b2mean"] + row["b2var"]
        sampler = f"{peer} {best.pop('step_size'):.2g} ({best.pop('grid')})"
        bar = "smile wins" if wins else f"{peer} wins"
        blanks = {"rejected": "", "anisotropy": ""}
        rows.append({**describe(name, variant), "sampler": sampler, **best, **blanks, "bar": bar})
    return rows


def with_control_variates(name: str, args) -> list[dict]:
    variant = VARIANTS[name]
    row = run_smile(variant, centred(variant), args.num_steps or 10_000, args.seeds)
    bar = CV_BARS.verdict(row)
    return [{**describe(name, variant), "sampler": "smile, cv", **row, "bar": bar}]


def against_full_batch(names: list[str], args) -> list[dict]:
    num_steps = args.num_steps or 10_000
    targets, rows = [], []
    for name in names:
        variant = VARIANTS[name]
        errors = run_smile(variant, centred(variant), num_steps, args.seeds)
        share = variant.batch_size / variant.problem.data_size
        passes = 2 * (variant.num_warmup + num_steps) * share + 1
        targets.append(errors)
        rows.append(full_batch_row(name, "smile, cv", variant.num_warmup, errors, passes, passes))
    if len({VARIANTS[name].problem for name in names}) > 1:
        raise SystemExit("--full-batch compares variants of one problem.")
    for sampler in ("nuts", "mclmc"):
        found = cheapest(sampler, VARIANTS[names[0]], targets, args.seeds)
        for name, best, ours in zip(names, found, rows[: len(names)], strict=True):
            rows.append(
                full_batch_row(name, sampler, best["warmup"], best, best["passes"], ours["passes"])
            )
    return rows


def full_batch_row(name, sampler, warmup, errors, passes, ours) -> dict:
    return {
        "variant": name,
        "sampler": sampler,
        "warmup": warmup,
        "b2mean": errors["b2mean"],
        "b2var": errors["b2var"],
        "passes": passes,
        "times ours": passes / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-steps", type=int, help="after the warmup")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--control-variates", action="store_true")
    mode.add_argument("--peers", action="store_true")
    mode.add_argument("--full-batch", action="store_true")
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()

    rows: list[dict] = []
    if args.full_batch:
        rows = against_full_batch(args.variants or list(FULL_BATCH_VARIANTS), args)
    else:
        run = with_control_variates if args.control_variates else plain
        for name in args.variants or (CV_VARIANTS if args.control_variates else VARIANTS):
            began = time.perf_counter()
            rows += run(name, args)
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
            print_table(rows[-3:] if args.peers else rows[-1:])
    print()
    report(rows, args.output)


if __name__ == "__main__":
    main()
