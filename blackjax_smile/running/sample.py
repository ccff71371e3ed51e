"""The driver's public API: a whole run, from positions to draws on disk."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.types import ArrayLikeTree, ArrayTree, PRNGKey
from jax.sharding import Mesh

from blackjax_smile._averaging import check_averages
from blackjax_smile._chains import check_positions
from blackjax_smile._checks import check_key
from blackjax_smile.adaptation.setup import AdaptationOptions
from blackjax_smile.adaptation.smile_adaptation import SmileAdaptationInfo
from blackjax_smile.minibatch import check_random
from blackjax_smile.preconditioners.base import PreconditionerEstimator
from blackjax_smile.running.devices import Placement
from blackjax_smile.running.drawing import STATISTICS
from blackjax_smile.running.engine import Engine
from blackjax_smile.running.fingerprint import fingerprint
from blackjax_smile.running.journal import Journal, MemoryDraws
from blackjax_smile.running.result import SampleResult
from blackjax_smile.running.session import Kept, run
from blackjax_smile.running.settings import Settings
from blackjax_smile.running.sources import Stream, open_source
from blackjax_smile.running.store import DrawStore, run_folders
from blackjax_smile.sgmcmc import smile

__all__ = ["sample"]


def sample(
    rng_key: PRNGKey,
    logdensity_fn: Callable,
    positions: ArrayLikeTree,
    minibatches: Callable[[PRNGKey], ArrayTree] | ArrayLikeTree | Iterable[ArrayTree],
    *,
    num_warmup: int,
    num_samples: int,
    thinning: int = 1,
    batch_size: int | None = None,
    preconditioner: str | PreconditionerEstimator = "auto",
    target_deflection: float = 0.25,
    collect: Callable[[ArrayTree], ArrayTree] | None = None,
    dtype: Any = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    store: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 30.0,
    chunk_size: int | None = None,
    progress_bar: bool | str = True,
    mesh: Mesh | None = None,
    share_minibatches: bool = False,
) -> SampleResult:
    """Adapt and sample several chains: resumable, from any data source, with draws on disk.

    Every chain is adapted by the rules of `smile_adaptation`, each for itself, and
    sampled by `smile` with what was found. The loop runs in compiled pieces of
    about a second; draws are written chunk by chunk, so memory does not grow with
    their number. All randomness is a function of ``rng_key`` and the number of the
    step: a run that was killed and resumed gives the draws, bit for bit, of one
    that was not, on the same hardware and number of devices.

    Parameters
    ----------
    rng_key
        Key of everything random.
    logdensity_fn
        ``(position, minibatch) -> logdensity``, as `smile_adaptation` takes it.
    positions
        Where the chains start: a pytree whose leaves lead with the chain.
    minibatches
        ``rng_key -> minibatch``, for data on the device; or arrays, with
        ``batch_size``; or an iterable of minibatches on the host (a data loader, a
        generator). Arrays that are memory-mapped files (`numpy.memmap`) stay on
        the host, and rows are read as they are needed; other arrays are put on
        the device. What comes from the host is read ahead by a thread.

        An iterable gives one minibatch after another to the chains in turn, so a
        run takes ``num_chains * (num_warmup + num_samples * thinning)``. Where it
        stands is kept in the checkpoint if its iterator has ``get_state`` and
        ``set_state`` (grain) or it has ``state_dict`` and ``load_state_dict``;
        otherwise a resumed run takes it from its start and drops what was used, so
        it must give the same minibatches again. With several processes, each
        passes an iterable for its own chains. Rows are to be drawn with replacement: a chain
        that sees whole epochs of a shuffling loader has a posterior too narrow.
    num_warmup
        Gradients of each chain's warmup.
    num_samples
        Draws of each chain that are kept. A finished run goes on when more are
        asked for.
    thinning
        Steps, of one gradient each, from one draw to the next.
    batch_size
        Rows of a minibatch (even) when ``minibatches`` is arrays.
    preconditioner, target_deflection
        See `smile_adaptation`.
    collect
        ``position -> pytree`` that is kept of each draw in place of the position:
        predictions, a subset of the weights.
    dtype
        Floating dtype of the draws in memory and store, such as ``"float16"``;
        None: the position's (float32 for bfloat16).
    dims, coords
        Names of the dimensions of what is kept, after chain and draw, and values
        along them; see `to_arviz`.
    store
        Folder of the draws in Zarr format, which xarray and ArviZ read also while
        the run goes on. None: draws stay in memory.
    checkpoint
        Folder of the checkpoints; by default next to the store, whose path it
        takes with ``.checkpoint`` added. The same call with the same paths resumes
        a run that was stopped, and returns a finished one without running.
    checkpoint_every
        Seconds between checkpoints, which is what a killed run loses at most.
    chunk_size
        Draws of each chain in a chunk of the store; by default about 32 MB worth.
    progress_bar
        True: shown if the output is a terminal. ``"force"``: shown anyway.
    mesh
        Devices to run on: the mesh's first axis divides the chains, a second one
        the rows of each minibatch. With `jax.distributed` the mesh spans all
        processes, each of which writes its own chains; the folders must be shared.
    share_minibatches
        Give all chains the same minibatch from the host. That costs fewer
        minibatches, but the chains' errors are then correlated: R-hat and the ESS
        of all chains together look better than they are.

    Returns
    -------
    A `SampleResult` with the draws (``.to_arviz()``, ``.positions``), the
    statistics, the adapted parameters and the final states. A second call for the same functions
    and shapes compiles nothing, whatever its data are.

    Raises
    ------
    ValueError
        For what does not fit together; for a checkpoint of another model, data,
        dtype, version or shape, naming what differs; for an iterable that ends too
        early, after writing what was sampled.
    OSError
        If draws or checkpoints cannot be written (a full disk): the run can be
        resumed.
    RuntimeError
        If another process of a distributed run has stopped.

    Warns
    -----
    UserWarning
        For chains whose adaptation failed, by index; the others go on. For chains that
        were still on their way to the posterior when the warmup ended. For many rejected steps.
        For an iterable whose minibatches come in epochs, if fewer than four chains take turns,
        and for one whose first minibatch is not that of the run which is resumed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, blackjax_smile
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (1000, 2))
    >>> def logdensity_fn(x, batch):
    ...     return -0.5 * x @ x - 500 * jnp.mean(jnp.sum((batch - x) ** 2, axis=1))
    >>> result = blackjax_smile.sample(
    ...     jax.random.key(1), logdensity_fn, jnp.zeros((4, 2)), data, batch_size=50,
    ...     num_warmup=500, num_samples=100, thinning=5)
    >>> result.positions.shape
    (4, 100, 2)
    >>> dict(result.to_arviz().posterior["x"].sizes)
    {'chain': 4, 'draw': 100, 'x_dim_0': 2}
    """
    options = AdaptationOptions(preconditioner, target_deflection)
    check_key(rng_key)
    positions, num_chains = check_positions(positions)
    settings = Settings(
        num_chains,
        num_warmup,
        num_samples,
        thinning,
        chunk_size,
        checkpoint_every,
        share_minibatches,
    )
    store_path, folder = run_folders(store, checkpoint)
    if not jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        rng_key = jax.random.wrap_key_data(rng_key)
    placement = Placement(mesh, num_chains)
    if placement.is_distributed and store is None:
        raise ValueError("A distributed run needs a store: no process has all draws.")
    first = jax.tree.map(lambda leaf: leaf[0], positions)
    # What is wrong with the position is said before the model is called with it.
    jax.eval_shape(lambda: smile.init(first, logdensity_fn, rng_key))
    source = open_source(
        minibatches,
        batch_size,
        np.asarray(jax.random.key_data(jax.random.fold_in(rng_key, 1))),
        num_chains,
        placement.local_chains,
        share_minibatches,
    )
    minibatch_fn = source if callable(source) else lambda _: source.first
    first_digest = source.first_digest if isinstance(source, Stream) else None
    if callable(source):
        check_random(source, rng_key)
    averages = check_averages(logdensity_fn, first, minibatch_fn(jax.random.fold_in(rng_key, 0)))
    kept = Kept(collect or _position, first, dtype, dims, coords)
    with Engine(
        rng_key, positions, source, logdensity_fn, options, kept.collect, settings, placement
    ) as engine:
        description = fingerprint(
            rng_key=rng_key,
            positions=positions,
            **engine.digests,
            example=engine.example,
            rows=kept.rows,
            first_minibatch=None if placement.is_distributed else first_digest,
            adapted=engine.warmup_like().adaptation.preconditioner,
            settings={
                "num_warmup": settings.num_warmup,
                "thinning": settings.thinning,
                "preconditioner": _name(preconditioner),
                "target_deflection": options.target_deflection,
                "share_minibatches": settings.share_minibatches,
            },
        )
        draws: DrawStore | MemoryDraws = MemoryDraws()
        if store_path is not None:
            draws = DrawStore(store_path, kept.rows, kept.chunk_size(settings), placement)
        journal = Journal(draws, folder, description, checkpoint_every, placement)
        with journal:
            adapted, chains = run(engine, journal, kept, progress_bar)
    return SampleResult(
        states=chains.states,
        parameters=adapted.parameters,
        adaptation=SmileAdaptationInfo(
            settings.schedule,
            adapted.num_finite_probes,
            adapted.windows,
            adapted.steps,
            jnp.broadcast_to(averages, num_chains),
        ),
        draws={name: draws.read("posterior", name) for name in kept.names},
        statistics={name: draws.read("sample_stats", name) for name in STATISTICS},
        store=draws.path,
        treedef=kept.treedef,
        # A resumed run's are those of its store.
        dims=draws.dims if isinstance(draws, DrawStore) else kept.dims,
        coords=draws.coords if isinstance(draws, DrawStore) else kept.coords,
        thinning=settings.thinning,
    )


def _position(position: ArrayTree) -> ArrayTree:
    return position


def _name(preconditioner: str | PreconditionerEstimator) -> str:
    if isinstance(preconditioner, str):
        return preconditioner
    fit = preconditioner.fit
    return getattr(fit, "__qualname__", type(fit).__qualname__)
