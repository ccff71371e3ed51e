"""The ensemble for a table: trained, adapted, sampled, with a line per phase."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from blackjax.types import ArrayTree

import blackjax_smile
from blackjax_smile import bnn
from blackjax_smile.errors import UserInputError
from blackjax_smile.tabular import Table

__all__ = ["TabularFit", "TabularOptions", "build_network", "fit_table"]


@dataclasses.dataclass(frozen=True)
class TabularOptions:
    """What can be changed on the command line."""

    num_chains: int = 4
    num_warmup: int = 4000
    num_samples: int = 500
    thinning: int = 20
    batch_size: int = 128
    hidden_units: int = 16
    # Below 1000 parameters "auto" is dense, which predicts worse (benchmarks/README.md).
    preconditioner: str = "kronecker"
    seed: int = 0


class TabularFit(NamedTuple):
    """Members and draws, and what they took.

    members
        Trained parameters, leading axis (member,): the deep ensemble.
    positions, infos
        Draws and statistics, leading axes (chain, draw).
    adaptation
        Of the chains that did not fail.
    failures
        A line for each that did.
    num_gradients
        Minibatch gradients of warmup and sampling, all chains.
    seconds
        Seconds of each phase, compilation included.
    """

    members: ArrayTree
    positions: ArrayTree
    infos: Any
    adaptation: Any
    failures: list[str]
    num_gradients: int
    seconds: dict[str, float]


def build_network(table: Table, options: TabularOptions) -> bnn.Network:
    """Return the network of a table's task."""
    hidden = (options.hidden_units, options.hidden_units)
    if table.task == "regression":
        return bnn.regression_network(len(table.features), hidden)
    return bnn.classification_network(len(table.features), len(table.classes), hidden)


def fit_table(
    table: Table,
    network: bnn.Network,
    options: TabularOptions,
    report: Callable[[str], None] = lambda line: None,
) -> TabularFit:
    """Train the members, then adapt and sample a chain from each."""
    data_size = len(table.train[1])
    batch_size = min(options.batch_size, data_size // 2 * 2)
    train_key, warmup_key, sample_key = jax.random.split(jax.random.key(options.seed), 3)
    seconds = {}

    began = time.perf_counter()
    members = train_members(table, network, options.num_chains, train_key)
    finite = np.asarray(members.is_finite)
    seconds["training"] = time.perf_counter() - began
    steps = members.num_steps
    report(
        f"trained {options.num_chains} networks, {int(steps.min())} to {int(steps.max())} steps "
        f"({seconds['training']:.0f} s)"
    )
    if not finite.any():
        raise UserInputError(
            "The training of all networks diverged. Look for values far from all others."
        )
    starts = jax.tree.map(lambda x: x[finite], members.positions)

    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        network.logprior, network.loglikelihood, data_size
    )
    minibatch_fn = blackjax_smile.minibatch_sampler(table.train, batch_size)
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner=options.preconditioner
    )
    began = time.perf_counter()
    adapted = jax.block_until_ready(
        blackjax_smile.adapt_ensemble(warmup_key, warmup, starts, options.num_warmup)
    )
    sound = blackjax_smile.drop_failed(adapted)
    seconds["warmup"] = time.perf_counter() - began
    report(f"adapted {len(sound.failed)} chains ({seconds['warmup']:.0f} s)")
    for failure in adapted.describe_failures():
        report(f"left out: {failure}")

    began = time.perf_counter()
    _, (positions, infos) = jax.block_until_ready(
        blackjax_smile.sample_ensemble(
            sample_key,
            blackjax_smile.smile,
            logdensity_fn,
            minibatch_fn,
            sound,
            options.num_samples,
            options.thinning,
        )
    )
    seconds["sampling"] = time.perf_counter() - began
    report(f"sampled {options.num_samples} draws per chain ({seconds['sampling']:.0f} s)")
    gradients = len(adapted.failed) * options.num_warmup
    gradients += len(sound.failed) * options.num_samples * options.thinning
    return TabularFit(
        starts, positions, infos, sound, adapted.describe_failures(), gradients, seconds
    )


def train_members(table: Table, network: bnn.Network, num_members: int, rng_key: Any) -> Any:
    """Train with AdamW on the likelihood, weight decay as the regulariser, early stopping."""
    data_size = len(table.train[1])
    batch_size = min(64, data_size)

    def validation_fn(position):
        return -jnp.mean(jax.vmap(network.loglikelihood, (None, 0))(position, table.validation))

    likelihood_alone = blackjax.sgmcmc.gradients.logdensity_estimator(
        lambda position: 0.0, network.loglikelihood, data_size
    )
    epoch = max(1, data_size // batch_size)
    return blackjax_smile.train_ensemble(
        rng_key,
        network.init,
        likelihood_alone,
        blackjax_smile.minibatch_sampler(table.train, batch_size),
        optax.adamw(0.01, weight_decay=0.005),
        data_size=data_size,
        num_members=num_members,
        num_steps=200 * epoch,
        validation_fn=validation_fn,
        evaluation_interval=epoch,
        patience=10,
    )
