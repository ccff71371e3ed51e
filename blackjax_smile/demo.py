"""Bayesian softmax regression on scikit-learn's digits: the demo's model, fit and report."""

import dataclasses
import pathlib
import shutil
import time
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import Array

import blackjax_smile
from blackjax_smile._extras import COMMAND_PACKAGES, check_installed
from blackjax_smile.command_options import check_options
from blackjax_smile.errors import UserInputError

__all__ = [
    "Data",
    "Fit",
    "Options",
    "find_mode",
    "fit_smile",
    "load_digits",
    "report",
    "run",
    "save",
]

NUM_CLASSES = 10

#: Modules that the demo needs beside the core's, and the packages they come in.
PACKAGES = {"sklearn": "scikit-learn", **COMMAND_PACKAGES}

#: Deviation of the normal prior of every parameter.
PRIOR_DEVIATION = 3.0

#: Points of a calibration curve.
CALIBRATION_GROUPS = 6


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be changed on the command line."""

    num_chains: int = 4
    num_warmup: int = 4000
    num_samples: int = 500
    thinning: int = 40
    batch_size: int = 256
    num_components: int = 20
    preconditioner: str = "auto"
    seed: int = 0


class Data(NamedTuple):
    """Features and labels of the training and the test rows."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]


class Fit(NamedTuple):
    """The draws with leading axes (chain, draw), the run they are of, and how long it took."""

    positions: dict[str, Array]
    run: blackjax_smile.SampleResult
    seconds: float


def load_digits(options: Options) -> Data:
    """Return the digits as principal components, fitted and scaled on the training rows."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images / 16, labels, test_size=0.25, stratify=labels, random_state=options.seed
    )
    pca = PCA(options.num_components, random_state=options.seed).fit(train_x)
    scale = pca.transform(train_x).std()

    def features(x):
        return jnp.asarray(pca.transform(x) / scale, jnp.float32)

    return Data((features(train_x), jnp.asarray(train_y)), (features(test_x), jnp.asarray(test_y)))


def log_probabilities(position: dict[str, Array], x: Array) -> Array:
    """Return the log-probabilities of the classes, shape ``(..., 10)``."""
    return jax.nn.log_softmax(x @ position["weights"] + position["bias"])


def loglikelihood(position: dict[str, Array], row: tuple[Array, Array]) -> Array:
    x, label = row
    return log_probabilities(position, x)[label]


def logprior(position: dict[str, Array]) -> Array:
    squares = sum(jnp.sum(leaf**2) for leaf in position.values())
    return -0.5 * squares / PRIOR_DEVIATION**2


def find_mode(data: Data) -> dict[str, Array]:
    """Return the MAP estimate by L-BFGS on all rows."""
    import optax

    def loss(position):
        return -logprior(position) - jnp.sum(
            jax.vmap(loglikelihood, (None, 0))(position, data.train)
        )

    position = {
        "weights": jnp.zeros((data.train[0].shape[1], NUM_CLASSES)),
        "bias": jnp.zeros(NUM_CLASSES),
    }
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        position, state = carry
        value, grad = value_and_grad(position, state=state)
        updates, state = solver.update(grad, state, position, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(position, updates), state), value

    (position, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, length=100))(
        (position, solver.init(position))
    )
    return position


def fit_smile(
    data: Data,
    mode: dict[str, Array],
    options: Options,
    folder: pathlib.Path | None = None,
    resume: bool = False,
) -> Fit:
    """Adapt and sample several chains from scattered starts, the draws going to a folder."""
    start_time = time.perf_counter()
    logdensity_fn = blackjax.sgmcmc.gradients.logdensity_estimator(
        logprior, loglikelihood, len(data.train[1])
    )
    store = None if folder is None else folder / "draws.zarr"
    if store is not None and not resume:
        _remove_earlier_run(store)

    start_key, run_key = jax.random.split(jax.random.key(options.seed))
    # Far wider than the posterior: that the chains meet is for R-hat to say.
    positions = jax.vmap(
        lambda key: jax.tree.map(
            jnp.add, mode, blackjax.util.generate_gaussian_noise(key, mode, 0.0, jnp.ones(()))
        )
    )(jax.random.split(start_key, options.num_chains))
    run = blackjax_smile.sample(
        run_key,
        logdensity_fn,
        positions,
        blackjax_smile.minibatch_sampler(data.train, options.batch_size),
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        thinning=options.thinning,
        preconditioner=options.preconditioner,
        dims={"weights": ["component", "digit"], "bias": ["digit"]},
        store=store,
        checkpoint_every=5.0,
    )
    draws = jax.tree.map(jnp.asarray, run.positions)
    return Fit(draws, run, time.perf_counter() - start_time)


def _remove_earlier_run(store: pathlib.Path) -> None:
    """Remove what an earlier demo left; raise if something else is in its place."""
    parameters = ("weights", "bias")
    is_ours = all((store / "posterior" / name).is_dir() for name in parameters)
    if store.exists() and not is_ours:
        raise UserInputError(
            f"{str(store)!r} is in the way, and no draws of the demo. Choose another --output."
        )
    for path in (store, pathlib.Path(f"{store}.checkpoint")):
        shutil.rmtree(path, ignore_errors=True)


def predict(fit: Fit, x: Array) -> Array:
    """Return log-probabilities of the classes of each row, ``(chain, draw, row, class)``."""
    by_draw = jax.vmap(jax.vmap(log_probabilities, (0, None)), (0, None))
    return jax.jit(by_draw)(fit.positions, x)


def report(data: Data, mode: dict[str, Array], fit: Fit, options: Options) -> str:
    """Return the table of results."""
    x, labels = data.test
    draws = predict(fit, x)
    of_label = jnp.take_along_axis(draws, labels[None, None, :, None], axis=-1)[..., 0]
    mixture = jax.nn.logsumexp(draws, axis=(0, 1)) - np.log(draws.shape[0] * draws.shape[1])

    def scores(log_probability):
        accuracy = jnp.mean(jnp.argmax(log_probability, axis=-1) == labels)
        density = jnp.mean(log_probability[jnp.arange(len(labels)), labels])
        return f"{float(accuracy):>12.4f}  {float(density):>22.4f}"

    windows, statistics = fit.run.adaptation.windows, fit.run.statistics
    deflection = np.asarray(statistics["deflection"]).mean(axis=1)
    steps = options.num_samples * options.thinning
    gradients = options.num_chains * (options.num_warmup + steps)
    rejected = int(np.sum(statistics["num_rejected"]))
    passes = gradients * options.batch_size / len(labels_of(data))
    lines = [
        f"{'':18}{'test accuracy':>12}  {'log predictive density':>22}",
        f"{'MAP estimate':18}{scores(log_probabilities(mode, x))}",
        f"{'SMILE':18}{scores(mixture)}",
        "",
        f"R-hat of the test rows' log-probabilities   {float(jnp.max(blackjax.rhat(of_label))):.3f}"
        "  (largest; 1 is best)",
        f"ESS of the same                             {float(jnp.min(blackjax.ess(of_label))):.0f}"
        f"  (smallest, of {of_label.shape[0] * of_label.shape[1]} draws)",
        f"rejected steps                              {rejected} of {options.num_chains * steps}",
        f"step size, one per chain                    {_row(fit.run.parameters['step_size'])}",
        f"deflection (radians)                        {_row(deflection)}",
        f"its target                                  {_row(windows.target_deflection[:, -1])}",
        f"anisotropy of the whitened noise            {_row(windows.anisotropy[:, -1])}"
        "  (0 is white)",
        f"gradients                                   {gradients}, of {options.batch_size} rows"
        f" ({passes:.0f} passes over the data)",
        f"time                                        {fit.seconds:.0f} s with compilation",
    ]
    return "\n".join(lines)


def labels_of(data: Data) -> Array:
    """Return the labels of the training rows."""
    return data.train[1]


def _row(values: Array) -> str:
    return " ".join(f"{float(v):.2f}" for v in values)


def save(data: Data, mode: dict[str, Array], fit: Fit, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the draws as NetCDF and a figure; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    x, labels = data.test
    draws = predict(fit, x)
    of_label = jnp.take_along_axis(draws, labels[None, None, :, None], axis=-1)[..., 0]
    netcdf, figure = folder / "posterior.nc", folder / "figure.png"
    netcdf.unlink(missing_ok=True)  # an earlier run's may still be open
    fit.run.to_arviz().to_netcdf(str(netcdf))
    _plot(draws, of_label, labels, log_probabilities(mode, x), figure)
    return [netcdf, figure]


def _plot(draws: Array, of_label: Array, labels: Array, at_mode: Array, path: pathlib.Path) -> None:
    """Draw what each chain says of a hard row, and how calibrated the probabilities are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    hardest = int(jnp.argmax(jnp.var(jnp.exp(of_label), axis=(0, 1))))
    for chain, probability in enumerate(np.exp(np.asarray(of_label[:, :, hardest]))):
        bins = np.linspace(0, 1, 21)
        left.hist(probability, bins=bins, histtype="step", linewidth=1.3, label=f"chain {chain}")
    left.set(
        xlabel=f"probability of its digit, {int(labels[hardest])}",
        ylabel="draws",
        title="The test image that the posterior is least sure of",
        xlim=(0, 1),
    )
    left.legend(fontsize="small")

    mixture = jax.nn.logsumexp(draws, axis=(0, 1)) - np.log(draws.shape[0] * draws.shape[1])
    for name, log_probability, marker in (("MAP", at_mode, "s--"), ("SMILE", mixture, "o-")):
        probability = np.exp(np.asarray(log_probability))
        confidence, correct = probability.max(-1), probability.argmax(-1) == np.asarray(labels)
        # The least confident half in equal groups: of a fixed bin's few images chance decides.
        groups = np.array_split(np.argsort(confidence)[: len(confidence) // 2], CALIBRATION_GROUPS)
        points = [(confidence[group].mean(), correct[group].mean()) for group in groups]
        right.plot(*zip(*points, strict=True), marker, label=name)
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    right.set(
        xlabel="probability given to the predicted digit",
        ylabel="share predicted right",
        title="Calibration, less certain half of the images",
        xlim=(0.4, 1.02),
        ylim=(0.4, 1.02),
    )
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(options: Options, output: pathlib.Path, resume: bool = False) -> None:
    """Fit, print the results, write draws and a figure."""
    check_installed(PACKAGES, "The demo")
    check_options(options)
    data = load_digits(options)
    mode = find_mode(data)
    print(
        f"Digits: {len(data.train[1])} training and {len(data.test[1])} test images, "
        f"{sum(leaf.size for leaf in mode.values())} parameters, {options.num_chains} chains.",
        flush=True,
    )
    fit = fit_smile(data, mode, options, output, resume)
    print(report(data, mode, fit, options))
    for path in save(data, mode, fit, output):
        print(f"wrote {path}")
