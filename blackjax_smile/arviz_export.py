"""From the history of a run to ArviZ, on ArviZ 0.x and 1.x."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from blackjax.types import ArrayLikeTree

from blackjax_smile import _tree
from blackjax_smile.minibatch import ScheduledState

__all__ = ["import_arviz", "to_arviz"]

#: ArviZ's name of a statistic, and the field of BlackJAX's infos that holds it.
#: ``energy`` is left out: the BFMI that ArviZ makes of it presumes full batches.
STATISTICS = {
    "lp": "logdensity",
    "diverging": "is_divergent",
    "energy_error": "energy_change",
    "kinetic_change": "kinetic_change",
    "deflection": "deflection",
    "alignment": "alignment",
    "step_size": "step_size",
    "n_steps": "num_integration_steps",
    "num_rejected": "num_rejected",
}

#: Fields of BlackJAX's states with one number per step: they show the leading axes.
SCALARS_OF_STATES = ("logdensity", "count", "xi")

LP_COMMENT = (
    "Log-density that the state holds. With minibatches: an estimate from the step's minibatch, "
    "not comparable between draws."
)


def import_arviz() -> Any:
    """Import ArviZ without the notice of its refactoring, which 0.23 gives as a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def to_arviz(
    states: Any,
    infos: Any = None,
    *,
    chain_axis: bool | None = None,
    var_name: str = "x",
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    log_likelihood: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    observed_data: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Return the history of one or several chains as ArviZ takes it.

    Parameters
    ----------
    states
        History of the states, as `blackjax.util.run_inference_algorithm` returns
        it: leaves of leading axis ``(draw,)``, or ``(chain, draw)`` when the run
        was vmapped. Or the history of the positions alone.
    infos
        History of the infos, with one number per draw (see ``info_transform`` of
        `blackjax.util.thin_algorithm`). The fields known to ArviZ's schema are
        taken; gradients and other trees of the model's size are not. Where
        ``is_divergent`` counts the rejected steps of a draw, as `sample_ensemble`'s
        does, the count becomes ``num_rejected``, and ``diverging`` whether it is
        above 0.
    chain_axis
        Whether the leaves lead with ``(chain, draw)``. None: told from a field
        with one number per step, such as ``logdensity``.
    var_name
        Name of a position that is a bare array; stem of the names of one that is
        a tuple or a list (``"x.0"``).
    dims
        Names of the dimensions of a variable, after chain and draw. A nested
        position's variables are named by their path, joined by dots
        (``"layer.weights"``).
    coords
        Values of the coordinates along named dimensions.
    log_likelihood, posterior_predictive
        Further groups, variables with the same leading axes as the history.
        `arviz.loo` needs the log-likelihood of each observation.
    observed_data
        The data, without leading axes for chain and draw.
    attrs
        Further attributes of the result and its groups.

    Returns
    -------
    ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x, chain first,
    draw second. The statistic ``lp`` is a minibatch's estimate where the sampler
    used minibatches: an attribute says so.

    Raises
    ------
    ValueError
        If the leading axes differ, or nothing shows whether there is one chain or
        several; for two variables of one name, ``dims`` of an unknown one and ``coords`` of an
        unknown dimension; for infos that are none, and a group that is no dict; for a
        `blackjax_smile.SampleResult`, which has a method for it.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax, blackjax_smile
    >>> from blackjax_smile.arviz_export import to_arviz
    >>> algorithm = blackjax_smile.smile(
    ...     lambda x: -0.5 * sum(jnp.sum(leaf**2) for leaf in x.values()), L=3.0, step_size=0.5)
    >>> def chain(key):
    ...     return blackjax.util.run_inference_algorithm(
    ...         key, algorithm, num_steps=100,
    ...         initial_position={"weights": jnp.zeros((3, 2)), "bias": jnp.zeros(2)})[1]
    >>> states, infos = jax.vmap(chain)(jax.random.split(jax.random.key(0), 4))
    >>> data = to_arviz(states, infos, dims={"weights": ["feature", "output"]})
    >>> dict(data.posterior["weights"].sizes)
    {'chain': 4, 'draw': 100, 'feature': 3, 'output': 2}
    >>> sorted(data.sample_stats.data_vars)
    ['alignment', 'deflection', 'diverging', 'energy_error', 'kinetic_change', 'lp']
    """
    if hasattr(states, "to_arviz"):
        raise ValueError(
            f"to_arviz takes the history of a run, got a {type(states).__name__}. Call its own "
            "method, result.to_arviz(), which takes further groups as well."
        )
    state = states.state if isinstance(states, ScheduledState) else states
    _check_history(state, infos)
    statistics = _statistics(infos, state)
    if not isinstance(chain_axis, bool | None):
        raise ValueError(f"chain_axis must be True, False or None, got {chain_axis!r}.")
    if chain_axis is None:
        chain_axis = _has_chain_axis(states, state, statistics)

    # A NamedTuple's field; a dict with a variable "position" is a position itself.
    position = state.position if hasattr(state, "position") else state
    groups = {"posterior": _named_leaves(position, var_name)}
    groups["log_likelihood"] = _arrays(log_likelihood, "log_likelihood")
    groups["posterior_predictive"] = _arrays(posterior_predictive, "posterior_predictive")
    groups["sample_stats"] = statistics
    groups = _with_chain_axis(groups, chain_axis)
    groups["observed_data"] = _arrays(observed_data, "observed_data")
    groups = {name: variables for name, variables in groups.items() if variables}

    _check_names(groups, dims)
    data = _from_groups(groups, dims, coords)
    unknown = set(coords or {}).difference(*(data[group].dims for group in groups))
    if unknown:
        raise ValueError(
            f"coords names {sorted(unknown)}, but no variable has such a dimension: dims gives the "
            "names, dims={'x': ['parameter']}."
        )
    _set_attributes(data, groups, attrs)
    return data


def _to_numpy(leaf: Any) -> np.ndarray:
    """Return a leaf as an array that netCDF can hold."""
    array = np.asarray(leaf)
    # bfloat16 and its kind are void types to numpy; HDF5 readers stumble on half precision.
    if jax.numpy.issubdtype(array.dtype, np.floating) and array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    return array


def _arrays(variables: Mapping[str, Any] | None, group: str) -> dict[str, np.ndarray]:
    if not isinstance(variables, Mapping | None):
        raise ValueError(
            f"{group} must be a dict of arrays by the names of their variables, such as "
            f"{group}={{'y': array}}, got a {type(variables).__name__}."
        )
    return {str(name): _to_numpy(leaf) for name, leaf in (variables or {}).items()}


def _named_leaves(position: ArrayLikeTree, var_name: str) -> dict[str, np.ndarray]:
    named = _tree.named_leaves(position, var_name)
    if not named:
        raise ValueError("The states hold no array: there is no position to export.")
    return {name: _to_numpy(leaf) for name, leaf in named.items()}


def _check_history(state: Any, infos: Any) -> None:
    """Raise for infos that are none, and for states that are infos."""
    is_info = hasattr(state, "energy_change") and not hasattr(state, "position")
    has_fields = hasattr(infos, "_fields") or not isinstance(infos, tuple | list | Mapping)
    if is_info or not has_fields:
        raise ValueError(
            "to_arviz takes the history of states, or of positions, and that of the infos as they "
            f"are; got {type(state).__name__} and {type(infos).__name__}. Of sample_ensemble's "
            "(states, (positions, infos)) it is to_arviz(positions, infos)."
        )


def _statistics(infos: Any, state: Any) -> dict[str, np.ndarray]:
    """Return the known statistics; the log-density from the states if need be."""
    found = {}
    for name, field in STATISTICS.items():
        value = getattr(infos, field, None)
        if value is None and field == "logdensity":
            value = getattr(state, field, None)
        if value is not None and jax.tree_util.all_leaves([value]):
            found[name] = _to_numpy(value)
    if "diverging" in found and found["diverging"].dtype != bool:
        # A thinned chain's draw counts the rejections of its steps.
        found["num_rejected"] = found["diverging"]
        found["diverging"] = found["num_rejected"] > 0
    return found


def _has_chain_axis(states: Any, state: Any, statistics: Mapping[str, np.ndarray]) -> bool:
    """Tell one chain from several by the rank of what is a number per step."""
    candidates: Iterable[Any] = (
        getattr(tree, field, None) for tree in (states, state) for field in SCALARS_OF_STATES
    )
    # The states first: a thinned algorithm's infos may have an axis for the steps in between.
    for value in (*candidates, *statistics.values()):
        # Methods such as tuple.count have no rank.
        rank = getattr(value, "ndim", None)
        if rank in (1, 2):
            return rank == 2
        if rank == 0:
            raise ValueError(
                "The states and infos are those of a single step. Pass the history that "
                "blackjax.util.run_inference_algorithm returns."
            )
    raise ValueError(
        "Nothing in the states and infos has one number per step, so one chain cannot be told "
        "from several. Pass chain_axis=False if the leaves lead with (draw,), chain_axis=True "
        "if they lead with (chain, draw)."
    )


def _with_chain_axis(
    groups: Mapping[str, dict[str, np.ndarray]], chain_axis: bool
) -> dict[str, dict[str, np.ndarray]]:
    """Check that the leading axes agree, and make the chain's where it is missing."""
    num_axes, axes = (2, "(chain, draw)") if chain_axis else (1, "(draw,)")
    expected, reference = None, ""
    for group, variables in groups.items():
        for name, array in variables.items():
            leading = array.shape[:num_axes]
            if expected is None and len(leading) == num_axes:
                expected, reference = leading, name
            if leading != expected:
                raise ValueError(
                    f"{name!r} ({group}) has shape {array.shape}, which does not lead with the "
                    f"axes {axes}" + (f" = {expected} of {reference!r}." if expected else ".")
                )
            if group == "sample_stats" and array.ndim != num_axes:
                raise ValueError(
                    f"The statistic {name!r} has shape {array.shape}, but needs one number per "
                    f"draw, {expected}. If the algorithm is thinned, reduce the infos: "
                    "thin_algorithm(..., info_transform=lambda info: jax.tree.map(...))."
                )
    if chain_axis:
        return dict(groups)
    return {group: {n: a[None] for n, a in vs.items()} for group, vs in groups.items()}


def _check_names(
    groups: Mapping[str, Mapping[str, np.ndarray]], dims: Mapping[str, Any] | None
) -> None:
    """Raise for names that ArviZ would fail on, or ignore, without saying so."""
    names = {name for variables in groups.values() for name in variables}
    if names & {"chain", "draw"}:
        raise ValueError(
            "ArviZ keeps the names 'chain' and 'draw' for the dimensions: rename the "
            f"variables {sorted(names & {'chain', 'draw'})}."
        )
    unknown = set(dims or {}) - names
    if unknown:
        raise ValueError(f"dims names {sorted(unknown)}, but the variables are {sorted(names)}.")
    for name, value in (dims or {}).items():
        if isinstance(value, str):
            raise ValueError(f"dims[{name!r}] must be a list such as [{value!r}], got {value!r}.")


def _from_groups(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    dims: Mapping[str, Sequence[str]] | None,
    coords: Mapping[str, Any] | None,
) -> Any:
    """Call ``arviz.from_dict``, whose arguments changed with ArviZ 1."""
    arviz = import_arviz()
    named = {
        "dims": {name: list(value) for name, value in (dims or {}).items()},
        "coords": dict(coords or {}),
    }
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, **named)
    return arviz.from_dict(**groups, **named)


def _set_attributes(data: Any, groups: Iterable[str], attrs: Mapping[str, Any] | None) -> None:
    from blackjax_smile import __version__  # not at the top: the package imports this module

    common = {
        "inference_library": "blackjax_smile",
        "inference_library_version": __version__,
        **(attrs or {}),
    }
    data.attrs.update(common)
    for group in groups:
        data[group].attrs.update(common)
    if "sample_stats" in groups and "lp" in data["sample_stats"]:
        data["sample_stats"]["lp"].attrs["comment"] = LP_COMMENT
