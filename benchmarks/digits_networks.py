"""Networks on scikit-learn's digits: the smile ensemble against the deep ensemble.

    python benchmarks/digits_networks.py                      # both networks
    python benchmarks/digits_networks.py --networks mlp --preconditioner diagonal
    python benchmarks/digits_networks.py --temperatures 0.1 0.03 0.01    # chosen in each split

`mlp`: 64-64-10, ReLU. `conv`: two 3 x 3 convolutions (8 and 16 channels, the second
with stride 2) and a linear layer. Independent normal priors of deviation 2, or
``--prior-deviation``; the posterior to the power 1 / temperature, likelihood and
prior alike. Both by the validation rows; with more than one of ``--temperatures``, *chosen*
takes in each split the one of the best validation LPPD. Rows split 70/10/20 by the seed, or by
``--test-share``: 360 test rows can tell no calibration error below 0.016 from none.
Members: AdamW 0.01, weight decay 0.005, batch 64, at most 200 epochs, early stopping on the
validation rows with patience 10. The deep ensemble is their mixture; each is also the start
of a chain.

lppd       mean over test rows of the log of the mean predictive density
ece        expected calibration error, 15 bins, of the mean predictive probabilities
validation lppd, validation ece: the same of the validation rows
floor      the same if the predictions were calibrated: labels drawn from them, mean of 200
pooled     the same of the predictions of all splits together
gain       mean difference to the deep ensemble over the splits, with its standard error
accuracy   of the same
rhat       of the test rows' log-likelihood, median over the rows where
           it varies: all chains / each by itself
seconds    compilation included
bar        both lppd and ece better than the deep ensemble's, in the means over the seeds
chosen by  what the validation rows say of the temperatures, in the means over the seeds: the best
           lppd; or, of those whose lppd is better than the deep ensemble's, the best ece

Nothing is set by hand for `smile`; batch 128. `--nuts` adds full-batch NUTS from the same
starts (250 + 250 draws of at most 127 leapfrogs): what is the posterior's and what the
sampler's.
"""

import argparse
import functools
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_model import NETWORKS, load_data
from full_batch_nuts import nuts_chain
from tables import print_table, verdict, with_error, write_csv

import blackjax_smile
from blackjax_smile import bnn, evaluation, prediction
from blackjax_smile.function_space import prediction_diagnostics

BATCH_SIZE = 128
PRIOR_DEVIATION = 2.0
TEMPERATURE = 0.01
NUTS_DRAWS = 250

SCORES = ("validation lppd", "validation ece", "lppd", "ece", "floor", "accuracy")
COLUMNS = (
    *("network", "seed", "sampler", "temperature", *SCORES),
    *("rhat", "rejected", "anisotropy", "seconds"),
)


def train(network: bnn.Network, data, num_members: int, rng_key):
    rows, validation, _ = data
    data_size = len(rows[1])
    likelihood_alone = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda position: 0.0, network.loglikelihood, data_size
    )

    def validation_fn(position):
        return -jnp.mean(jax.vmap(network.loglikelihood, (None, 0))(position, validation))

    epoch = data_size // 64
    return blackjax_smile.train_ensemble(
        rng_key,
        network.init,
        likelihood_alone,
        blackjax_smile.minibatch_sampler(rows, 64),
        optax.adamw(0.01, weight_decay=0.005),
        data_size=data_size,
        num_members=num_members,
        num_steps=200 * epoch,
        validation_fn=validation_fn,
        evaluation_interval=epoch,
        patience=10,
    )


def scores(network: bnn.Network, positions, validation, test) -> dict:
    """Return the scores, and the predictions and labels of which those of all splits are made."""

    def lppd_and_ece(rows):
        probabilities = prediction.predictive_mean(network.predict, positions, rows)
        lppd = evaluation.lppd(network.loglikelihood, positions, rows)
        ece = evaluation.expected_calibration_error(probabilities, rows[1])
        return probabilities, float(lppd), float(ece)

    _, validation_lppd, validation_ece = lppd_and_ece(validation)
    probabilities, lppd, ece = lppd_and_ece(test)
    return {
        "predictions": (np.asarray(probabilities), np.asarray(test[1])),
        "validation lppd": validation_lppd,
        "validation ece": validation_ece,
        "lppd": lppd,
        "ece": ece,
        "floor": calibration_floor(probabilities),
        "accuracy": float(evaluation.accuracy(probabilities, test[1])),
    }


def calibration_floor(probabilities) -> float:
    """Return the mean calibration error of labels that follow the predictions."""

    def draw(rng_key):
        labels = jax.random.categorical(rng_key, jnp.log(probabilities))
        return evaluation.expected_calibration_error(probabilities, labels)

    return float(np.mean([draw(key) for key in jax.random.split(jax.random.key(0), 200)]))


def with_prior(network: bnn.Network, deviation: float) -> bnn.Network:
    return network._replace(
        logprior=lambda position: network.logprior(jax.tree.map(lambda x: x / deviation, position))
    )


def tempered_posterior(network: bnn.Network, data_size: int, temperature: float):
    """Return the log-density of a minibatch, or of all rows, of the posterior at a temperature."""
    posterior = blackjax.sgmcmc.gradients.logdensity_estimator(
        network.logprior, network.loglikelihood, data_size
    )
    return lambda position, minibatch: posterior(position, minibatch) / temperature


def run_nuts(logdensity_fn, starts, rng_key):
    """Return draws of full-batch NUTS, one chain from each start, and seconds."""

    def chain(key, start):
        return nuts_chain(
            key, start, logdensity_fn, NUTS_DRAWS, NUTS_DRAWS, lambda state, _: state.position
        )

    began = time.perf_counter()
    keys = jax.random.split(rng_key, len(jax.tree.leaves(starts)[0]))
    draws = jax.block_until_ready(jax.jit(jax.vmap(chain))(keys, starts))
    return draws, time.perf_counter() - began


def run_smile(network: bnn.Network, data, logdensity_fn, starts, rng_key, args) -> dict:
    """Return the row of an ensemble of `smile` from ``starts``, nothing set by hand."""
    rows, validation, test = data
    warmup_key, sample_key = jax.random.split(rng_key)
    minibatch_fn = blackjax_smile.minibatch_sampler(rows, BATCH_SIZE)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner=args.preconditioner
    )
    began = time.perf_counter()
    adapted = blackjax_smile.adapt_ensemble(warmup_key, warmup, starts, args.num_warmup)
    sound = blackjax_smile.drop_failed(adapted)
    _, (positions, infos) = jax.block_until_ready(
        blackjax_smile.sample_ensemble(
            sample_key,
            blackjax_smile.smile,
            logdensity_fn,
            minibatch_fn,
            sound,
            args.num_steps // args.thinning,
            args.thinning,
        )
    )
    seconds = time.perf_counter() - began
    found = prediction_diagnostics(network.loglikelihood, positions, test)
    rejected = jnp.sum(infos.is_divergent) / (len(sound.failed) * args.num_steps)
    return {
        **scores(network, positions, validation, test),
        "rhat": f"{float(jnp.nanmedian(found.rhat)):.2f} / "
        f"{float(jnp.nanmedian(found.rhat_within)):.2f}",
        "rejected": float(rejected),
        "anisotropy": float(jnp.mean(sound.info.windows.anisotropy[:, -1])),
        "seconds": seconds,
    }


def compare(name: str, seed: int, args) -> list[dict]:
    network = with_prior(NETWORKS[name](), args.prior_deviation)
    data = load_data(seed, args.test_share)
    rows, validation, test = data
    train_key, smile_key, nuts_key = jax.random.split(jax.random.key(seed), 3)
    began = time.perf_counter()
    members = jax.block_until_ready(train(network, data, args.num_chains, train_key))
    seconds = time.perf_counter() - began
    mixture = jax.tree.map(lambda x: x[:, None], members.positions)
    blank = dict.fromkeys(COLUMNS, "") | {"network": name, "seed": seed}
    deep = scores(network, mixture, validation, test)
    found = [{**blank, "sampler": "deep ensemble", **deep, "seconds": seconds}]
    for temperature in args.temperatures:
        row = {**blank, "temperature": temperature}
        logdensity_fn = tempered_posterior(network, len(rows[1]), temperature)
        ours = run_smile(network, data, logdensity_fn, members.positions, smile_key, args)
        found.append({**row, "sampler": f"smile, {args.preconditioner}", **ours})
        if args.nuts:
            full_batch_fn = functools.partial(logdensity_fn, minibatch=rows)
            draws, seconds = run_nuts(full_batch_fn, members.positions, nuts_key)
            full = scores(network, draws, validation, test)
            found.append({**row, "sampler": "nuts", **full, "seconds": seconds})
    return found


def means_over_seeds(rows: list[dict]) -> list[dict]:
    """Return the means of each sampler and temperature, and what they say of the bar."""
    groups: dict[tuple, list[dict]] = {}
    for row in [*rows, *chosen(rows)]:
        groups.setdefault((row["network"], row["sampler"], row["temperature"]), []).append(row)
    deep = {key[0]: found for key, found in groups.items() if key[1] == "deep ensemble"}
    means = []
    for key, found in groups.items():
        lppd, ece = (gains(found, deep[key[0]], name) for name in ("lppd", "ece"))
        predictions = zip(*(row["predictions"] for row in found), strict=True)
        pooled = (np.concatenate(parts) for parts in predictions)
        row = {
            **dict(zip(("network", "sampler", "temperature"), key, strict=True)),
            **{name: float(np.mean([row[name] for row in found])) for name in SCORES},
            "pooled": float(evaluation.expected_calibration_error(*pooled)),
            "lppd gain": with_error(lppd, 4, "+"),
            "ece gain": with_error(ece, 4, "+"),
        }
        better = np.mean(lppd) > 0 > np.mean(ece)
        row["bar"] = verdict(better) if key[1].startswith("smile") else ""
        row["chosen by"] = ""
        means.append(row)
    for name in deep:
        name_the_chosen([row for row in means if row["network"] == name])
    return means


def name_the_chosen(means: list[dict]) -> None:
    """Say in the rows of a network which temperatures its validation rows choose."""
    rival = next(row for row in means if row["sampler"] == "deep ensemble")
    ours = [row for row in means if row["temperature"] not in ("", "chosen")]
    ours = [row for row in ours if row["sampler"].startswith("smile")]
    best = max(ours, key=lambda row: row["validation lppd"])
    best["chosen by"] = "lppd"
    better = [row for row in ours if row["validation lppd"] > rival["validation lppd"]]
    if better:
        calibrated = min(better, key=lambda row: row["validation ece"])
        calibrated["chosen by"] += " ece"


def chosen(rows: list[dict]) -> list[dict]:
    """Return for each split the row of `smile` with the best validation LPPD of several."""
    splits: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["sampler"].startswith("smile"):
            splits.setdefault((row["network"], row["seed"]), []).append(row)
    several = [found for found in splits.values() if len(found) > 1]
    best = [max(found, key=lambda row: row["validation lppd"]) for found in several]
    return [{**row, "temperature": "chosen"} for row in best]


def gains(rows: list[dict], rivals: list[dict], name: str) -> np.ndarray:
    return np.asarray([row[name] - rival[name] for row, rival in zip(rows, rivals, strict=True)])


def shown(rows: list[dict]) -> list[dict]:
    return [{name: row[name] for name in COLUMNS} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--test-share", type=float, default=0.2, help="of the rows; 0.1 validate")
    parser.add_argument("--preconditioner", default="auto")
    parser.add_argument("--prior-deviation", type=float, default=PRIOR_DEVIATION)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[TEMPERATURE])
    parser.add_argument("--nuts", action="store_true", help="full batch, for reference")
    parser.add_argument("--num-chains", type=int, default=4)
    parser.add_argument("--num-warmup", type=int, default=4000)
    parser.add_argument("--num-steps", type=int, default=10_000, help="after the warmup")
    parser.add_argument("--thinning", type=int, default=50)
    parser.add_argument("--output", help="CSV file")
    args = parser.parse_args()
    rows: list[dict] = []
    for name in args.networks:
        for seed in args.seeds:
            found = compare(name, seed, args)
            print_table(shown(found))
            rows += found
    print()
    print_table(shown(rows))
    print()
    print_table(means_over_seeds(rows))
    if args.output:
        write_csv(args.output, shown(rows))


if __name__ == "__main__":
    main()
