"""Step size, deflection and rejections through the warmup and, if given, the sampling."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from blackjax_smile._checks import positive_integer
from blackjax_smile.plots.figure import new_axes

__all__ = ["plot_adaptation"]

#: Steps that are summarised together: the memory of the step-size rule, or more in a
#: long run, of which so many blocks are drawn.
BLOCK, MAX_BLOCKS = 50, 400

#: Quantiles of the deflections of a block that bound the band.
BAND = (0.05, 0.95)

#: Step sizes below this share of the median's last are those of a failed chain.
NEGLIGIBLE = 1e-3


class _Phase(NamedTuple):
    """Warmup or sampling: arrays ``(chain, draw)`` from gradient ``start`` on."""

    deflection: np.ndarray
    num_rejected: np.ndarray
    start: int
    thinning: int

    @property
    def stop(self) -> int:
        return self.start + self.deflection.shape[1] * self.thinning


def plot_adaptation(
    info: Any,
    infos: Any = None,
    *,
    thinning: int | None = None,
    axes: Any = None,
) -> Any:
    """Draw step size, deflection and rejections through the warmup, and on through sampling.

    What to look for: within a window the step size settles (from one window to the
    next it may jump, for the preconditioner changes and with it the unit of length);
    the deflection comes to its target and stays there while sampling (far above it, the
    chain is still on its way, the gradient along the momentum: lengthen the warmup);
    rejections are few. The warmup rejects what is not finite; steps beyond the energy
    threshold are rejected in sampling only, for it is set at the warmup's end.

    Parameters
    ----------
    info
        What the warmup returned: a `SmileAdaptationInfo`, an `EnsembleAdaptation`, or
        the `SampleResult` of a whole run, whose statistics are then drawn as well.
    infos
        History of the infos of sampling, of leading axes ``(draw,)`` or ``(chain,
        draw)``, from `blackjax.util.run_inference_algorithm` or `sample_ensemble`.
    thinning
        Number of steps from one draw to the next, as it was given to `sample_ensemble`;
        None: that of the `SampleResult`, else 1. A draw's deflection is the arithmetic mean
        over those that were accepted: the band narrows, and the line lies a little above the
        geometric mean of the steps, which is what has a target.
    axes
        Three Matplotlib axes; None: new ones.

    Returns
    -------
    The three axes, over the number of minibatch gradients that a chain has taken:

    - the step size of each chain, and their median;
    - the geometric mean of the deflection over all chains in blocks of steps, a band
      from its 5 % to its 95 % quantile, and its target, the median over the chains (a
      warmup lowers it before the last window where the noise is strong);
    - the number of rejected steps of each chain so far.

    Dotted lines are the borders of the windows, the solid one is the start of
    sampling. The probes, gradients at the initial position, are no steps.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If ``info`` holds no history of steps: a full-batch warmup leaves none. If ``infos`` is
        no history of infos, ``axes`` are not three, or ``thinning`` is less than 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> from blackjax_smile.plots import plot_adaptation
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> warmup = blackjax_smile.smile_adaptation(
    ...     blackjax_smile.smile, logdensity_fn, blackjax_smile.minibatch_sampler(data, 50))
    >>> _, info = warmup.run(jax.random.key(1), jnp.zeros(2), num_steps=500)
    >>> axes = plot_adaptation(info)
    >>> [ax.get_ylabel() for ax in axes][1]
    'deflection (radians)'
    """
    thinning = getattr(info, "thinning", 1) if thinning is None else thinning
    thinning = positive_integer("thinning", thinning)
    statistics = getattr(info, "statistics", None)
    info = getattr(info, "adaptation", getattr(info, "info", info))
    if not hasattr(info, "steps"):
        raise ValueError(
            "plot_adaptation needs the info of a warmup with minibatches, which holds `steps`; "
            f"got {type(info).__name__}."
        )
    if infos is not None and not hasattr(infos, "is_divergent"):
        raise ValueError(
            "infos must be the history of the infos, of sample_ensemble's (states, (positions, "
            f"infos)) the last; got a {type(infos).__name__}."
        )
    if axes is not None and np.shape(axes) != (3,):
        raise ValueError(
            f"axes must be three, such as plt.subplots(3)[1]; got the shape {np.shape(axes)}."
        )
    borders = info.schedule.num_probes + np.cumsum([0, *info.schedule.windows])
    warmup = _phase(info.steps.deflection, info.steps.is_divergent, int(borders[0]), 1)
    sampling = None
    if infos is not None:
        sampling = _phase(infos.deflection, infos.is_divergent, warmup.stop, thinning)
    elif statistics is not None:
        rows = statistics["deflection"], statistics["num_rejected"]
        sampling = _phase(*rows, warmup.stop, thinning)

    axes = new_axes(3, sharex=True, figsize=(7, 6.5)) if axes is None else axes
    phases = [warmup] if sampling is None else [warmup, sampling]
    _draw_step_size(axes[0], info, warmup, phases[-1].stop)
    targets = np.atleast_2d(np.asarray(info.windows.target_deflection, np.float64))
    _draw_deflection(axes[1], phases, _median(targets), borders)
    _draw_rejections(axes[2], phases)
    for ax in axes:
        ax.set_xlim(0, phases[-1].stop)
        for border in borders[:-1]:
            ax.axvline(border, color="0.6", ls=":", lw=1, zorder=0)
        if sampling is not None:
            ax.axvline(borders[-1], color="0.3", ls="-", lw=1, zorder=0)
    axes[2].set_xlabel("minibatch gradients of a chain")
    titles = [
        f"{name}: {phase.num_rejected.sum():.0f} of {len(phase.deflection) * steps} steps rejected"
        for name, phase in zip(("warmup", "sampling"), phases, strict=False)
        for steps in (phase.stop - phase.start,)
    ]
    axes[0].set_title("; ".join(titles), fontsize="medium")
    return axes


def _phase(deflection: Any, rejected: Any, start: int, thinning: int) -> _Phase:
    # Zarr's arrays are read when they are indexed.
    deflection, rejected = (np.atleast_2d(np.asarray(x[...])) for x in (deflection, rejected))
    return _Phase(deflection.astype(np.float64), rejected.astype(np.int64), start, thinning)


def _median(chains: Any) -> Any:
    """Return the median over the chains where it is known of one."""
    known = np.isfinite(chains).any(axis=0)
    return np.where(known, np.nanmedian(np.where(known, chains, 0), axis=0), np.nan)


def _draw_step_size(ax: Any, info: Any, warmup: _Phase, stop: int) -> None:
    step_size = np.atleast_2d(np.asarray(info.steps.step_size, np.float64))
    # The one that sampling has is that after the last window.
    frozen = np.atleast_2d(np.asarray(info.windows.step_size, np.float64))[:, -1:]
    x = np.append(warmup.start + np.arange(step_size.shape[1]), [warmup.stop, stop])
    y = np.concatenate([step_size, frozen, frozen], axis=1)
    if len(y) > 1:
        lines = ax.plot(x, y.T, color="0.7", lw=0.7)
        lines[0].set_label("each chain")
    label = "median" if len(y) > 1 else "step size"
    median = _median(y)
    ax.plot(x, median, color="black", lw=1.2, label=label)
    ax.set_yscale("log")
    # The first steps double from next to nothing, those of a failed chain shrink to it, and both
    # would take most of the axis.
    usual = y[np.isfinite(y) & (y > NEGLIGIBLE * median[-1])]
    if usual.size:
        ax.set_ylim(np.quantile(usual, 0.01) / 1.5, 1.5 * usual.max())
    ax.set_ylabel("step size\n(whitened coordinates)")
    if len(y) > 1:
        ax.legend(frameon=False, fontsize="small")


def _draw_deflection(ax: Any, phases: list[_Phase], targets: Any, borders: Any) -> None:
    known = targets[np.isfinite(targets)]
    lowest, highest = known.min(initial=np.inf), known.max(initial=0.0)
    for phase in phases:
        rows = []
        for block, middle, _ in _blocks(phase):
            values = phase.deflection[:, block]
            values = values[np.isfinite(values) & (values > 0)]
            if values.size:
                mean = np.exp(np.mean(np.log(values)))
                rows.append((middle, mean, *np.quantile(values, BAND)))
        if not rows:
            continue
        x, mean, low, high = np.transpose(rows)
        is_first = phase is phases[0]
        labels = ("5 to 95 %", "geometric mean") if is_first else (None, None)
        ax.fill_between(x, low, high, color="0.85", lw=0, label=labels[0])
        ax.plot(x, mean, color="black", lw=1.2, label=labels[1])
        lowest, highest = min(lowest, mean.min()), max(highest, high.max())
    # The last window's target is that of sampling.
    edges = [*borders[:-1], phases[-1].stop]
    label = "target, " + " then ".join(f"{x:.2g}" for x in dict.fromkeys(targets))
    ax.stairs(targets, edges, baseline=None, color="0.4", ls="--", lw=1, label=label)
    ax.set_yscale("log")
    if np.isfinite(lowest):
        ax.set_ylim(lowest / 3, 1.5 * highest)
    ax.set_ylabel("deflection (radians)")
    ax.legend(frameon=False, fontsize="small", ncols=3)


def _draw_rejections(ax: Any, phases: list[_Phase]) -> None:
    ends = np.concatenate([[phases[0].start]] + [[end for *_, end in _blocks(p)] for p in phases])
    counts = np.concatenate(
        [
            np.stack([phase.num_rejected[:, block].sum(axis=1) for block, *_ in _blocks(phase)])
            for phase in phases
        ]
    )
    total = np.cumsum(np.concatenate([np.zeros((1, counts.shape[1])), counts]), axis=0)
    ax.plot(ends, total, color="black", lw=1, alpha=1 if total.shape[1] == 1 else 0.6)
    top = max(1.0, 1.05 * total.max())
    ax.set_ylim(-0.04 * top, top)  # a line at 0 is seen
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(
        "rejected steps so far\n(each chain)" if total.shape[1] > 1 else "rejected so far"
    )


def _blocks(phase: _Phase) -> Iterator[tuple[slice, float, int]]:
    """Yield the draws of each block, the gradient in its middle and that at its end."""
    num_draws = phase.deflection.shape[1]
    length = max(-(-BLOCK // phase.thinning), -(-num_draws // MAX_BLOCKS))
    for first in range(0, num_draws, length):
        last = min(first + length, num_draws)
        start, end = (phase.start + draw * phase.thinning for draw in (first, last))
        yield slice(first, last), (start + end) / 2, end
