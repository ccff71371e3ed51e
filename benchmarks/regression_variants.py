"""The variants of the logistic regression benchmark, and how `smile` runs on one."""

import dataclasses
import math

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from regression_problem import Problem, errors
from tables import verdict

import blackjax_smile


@dataclasses.dataclass(frozen=True)
class Bars:
    """Largest errors, and the range of the variance ratio."""

    b2mean: float = math.inf
    b2var: float = math.inf
    ratio: tuple[float, float] = (0.0, math.inf)

    def verdict(self, row: dict) -> str:
        if self == Bars():
            return ""
        low, high = self.ratio
        return verdict(
            row["b2mean"] <= self.b2mean
            and row["b2var"] <= self.b2var
            and low <= row["ratio"] <= high
        )


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    ``start_offset`` is the distance of the start from the mode in every parameter,
    in posterior standard deviations; ``from_zero`` starts at zero. ``share_corrupted`` of
    the batches contain a NaN, and as many an infinity.
    """

    problem: Problem
    bars: Bars
    batch_size: int = 200
    start_offset: float = 0.0
    from_zero: bool = False
    num_warmup: int = 2000
    preconditioner: str = "auto"
    share_corrupted: float = 0.0

    @property
    def start(self) -> jax.Array:
        if self.from_zero:
            return jnp.zeros(self.problem.d)
        offset = 0.0
        if self.start_offset:
            offset = self.start_offset * np.sqrt(self.problem.reference[1])
        return jnp.asarray(self.problem.mode + offset, jnp.float32)

    @property
    def minibatch_fn(self):
        minibatch_fn = self.problem.minibatch_fn(self.batch_size)
        if not self.share_corrupted:
            return minibatch_fn

        def corrupted(rng_key):
            batch_key, lot_key = jax.random.split(rng_key)
            X, y = minibatch_fn(batch_key)
            lot = jax.random.uniform(lot_key)
            bad = jnp.where(lot < self.share_corrupted, jnp.nan, jnp.inf)
            return X.at[0, 0].add(jnp.where(lot < 2 * self.share_corrupted, bad, 0.0)), y

        return corrupted


BASE = Problem()
LARGE = Problem(data_size=200_000)
RARE = Problem(d=5, data_size=200_000, spread=1.0, intercept=-5.6)
STRICT = Bars(b2mean=0.008, b2var=0.004, ratio=(0.95, 1.05))

# Variants of one problem share its instance, and with it the reference.
VARIANTS = {
    "base": Variant(BASE, STRICT),
    "batch20": Variant(BASE, Bars(b2mean=0.03, b2var=0.012), batch_size=20),
    "batch2000": Variant(BASE, STRICT, batch_size=2000),
    "d5": Variant(Problem(d=5), Bars(b2mean=0.008, b2var=0.004, ratio=(0.93, 1.07))),
    "d100": Variant(Problem(d=100), STRICT),
    "spread300": Variant(Problem(d=50, spread=300.0), Bars(b2mean=0.008, b2var=0.005)),
    "far_start": Variant(BASE, STRICT, start_offset=10.0, num_warmup=5000),
    "column_scales": Variant(Problem(column_scales=(1e-3, 1e3, 0.0)), STRICT),
    "corrupted": Variant(BASE, Bars(), share_corrupted=0.01),
    "diagonal": Variant(BASE, Bars(), preconditioner="diagonal"),
    "rare_class": Variant(RARE, Bars(), batch_size=100),
    "rare_class_from_zero": Variant(RARE, Bars(), batch_size=100, from_zero=True, num_warmup=8000),
    "large_data": Variant(LARGE, STRICT),
    "large_data_batch2000": Variant(LARGE, STRICT, batch_size=2000),
}


def chain_keys(num_seeds: int) -> jax.Array:
    return jax.random.split(jax.random.key(1), num_seeds)


def mean_errors(draws: jax.Array, reference) -> dict[str, float]:
    """Return the errors of chains of draws, averaged over the chains."""
    chains = [np.asarray(chain, np.float64) for chain in draws]
    each = [errors(chain.mean(0), chain.var(0), reference) for chain in chains]
    return {name: float(np.mean([e[name] for e in each])) for name in each[0]}


def run_smile(variant: Variant, logdensity_fn, num_steps: int, num_seeds: int) -> dict[str, float]:
    """Return the errors of `smile`, the share of rejections and the anisotropy."""
    minibatch_fn, start = variant.minibatch_fn, variant.start
    warmup = blackjax_smile.smile_adaptation(
        blackjax_smile.smile, logdensity_fn, minibatch_fn, preconditioner=variant.preconditioner
    )

    @jax.jit
    @jax.vmap
    def chain(key):
        warmup_key, sample_key = jax.random.split(key)
        (state, parameters), info = warmup.run(warmup_key, start, variant.num_warmup)
        algorithm = blackjax_smile.with_minibatches(
            blackjax_smile.smile(logdensity_fn, **parameters), minibatch_fn
        )
        _, (positions, rejected) = blackjax.util.run_inference_algorithm(
            sample_key,
            algorithm,
            num_steps,
            initial_state=state,
            transform=lambda state, info: (state.position, info.is_divergent),
        )
        return positions, jnp.mean(rejected), info.windows.anisotropy[-1]

    draws, rejected, anisotropy = chain(chain_keys(num_seeds))
    return {
        **mean_errors(draws, variant.problem.reference),
        "rejected": float(jnp.mean(rejected)),
        "anisotropy": float(jnp.mean(anisotropy)),
    }
