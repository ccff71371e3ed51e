"""Preconditioners made from an ``inverse_mass_matrix`` that the user gives."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from blackjax.types import Array, ArrayTree, PRNGKey
from blackjax.util import pytree_size
from jax.flatten_util import ravel_pytree

from blackjax_smile.preconditioners.base import Draw, Preconditioner
from blackjax_smile.preconditioners.dense import DensePreconditioner

__all__ = [
    "FlatDiagonalPreconditioner",
    "LowRankPreconditioner",
    "ScalarPreconditioner",
    "as_preconditioner",
    "check_dimension",
]


class _WithoutComplement:
    """A map that is given, not estimated, has no floor and injects no noise."""

    @property
    def complement_trace(self) -> Array:
        return jnp.zeros(())

    def refresh_noise(
        self,
        rng_key: PRNGKey,
        momentum: ArrayTree,
        isotropic: Array,
        complementary: Array,
        draw: Draw,
    ) -> ArrayTree:
        del complementary
        return jax.tree.map(lambda z: isotropic.astype(z.dtype) * z, draw(rng_key, momentum))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScalarPreconditioner(_WithoutComplement):
    r""":math:`F = s I`, with ``scale`` :math:`s` a positive scalar.

    Without a scale different from 1 this is the "SMILE" of the paper.
    """

    scale: Array

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        return jax.tree.map(lambda u: self.scale.astype(u.dtype) * u, momentum)

    whiten = to_position


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatDiagonalPreconditioner(_WithoutComplement):
    r""":math:`F = \mathrm{diag}(s)`, with ``scale`` :math:`s` of shape ``(d,)``.

    The elements follow the order of `jax.flatten_util.ravel_pytree`, as in
    BlackJAX.
    """

    scale: Array

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        # Slices of the vector fuse with the product; ravelling the tree would not.
        leaves, treedef = jax.tree.flatten(momentum)
        ends = np.cumsum([leaf.size for leaf in leaves])
        scaled = [
            self.scale[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype) * leaf
            for end, leaf in zip(ends, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, scaled)

    whiten = to_position


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankPreconditioner(_WithoutComplement):
    r""":math:`F = \mathrm{diag}(\sigma) (I + U (\Lambda^{1/2} - I) U^T)`.

    A factor of BlackJAX's `LowRankInverseMassMatrix`; shapes ``(d,)``, ``(d, k)``
    and ``(k,)``.
    """

    sigma: Array
    U: Array
    sqrt_lam: Array

    def _scale_subspace(self, y: Array) -> Array:
        return y + self.U @ ((self.sqrt_lam - 1) * (self.U.T @ y))

    def to_position(self, momentum: ArrayTree) -> ArrayTree:
        flat, unravel = ravel_pytree(momentum)
        return unravel((self.sigma * self._scale_subspace(flat)).astype(flat.dtype))

    def whiten(self, grad: ArrayTree) -> ArrayTree:
        flat, unravel = ravel_pytree(grad)
        return unravel(self._scale_subspace(self.sigma * flat).astype(flat.dtype))


def as_preconditioner(inverse_mass_matrix: Any) -> Preconditioner:
    r"""Return a map :math:`F` with :math:`F F^T = M^{-1}`.

    Parameters
    ----------
    inverse_mass_matrix
        A scalar, a 1-D or a symmetric positive definite 2-D array, a
        `blackjax.mcmc.metrics.LowRankInverseMassMatrix`, or a `Preconditioner`,
        which is returned as it is.

    Raises
    ------
    ValueError
        If it has another shape, is not finite, or not positive (definite).
    """
    if isinstance(inverse_mass_matrix, LowRankInverseMassMatrix):
        sigma, U, lam = map(jnp.asarray, inverse_mass_matrix)
        if sigma.ndim != 1 or lam.ndim != 1 or U.shape != sigma.shape + lam.shape:
            raise ValueError(
                "A LowRankInverseMassMatrix needs sigma of shape (d,), U of shape (d, k) and "
                f"lam of shape (k,); got {sigma.shape}, {U.shape} and {lam.shape}."
            )
        _check_positive(sigma, "sigma of the LowRankInverseMassMatrix")
        _check_positive(lam, "lam of the LowRankInverseMassMatrix")
        return LowRankPreconditioner(sigma, U, jnp.sqrt(lam))
    if isinstance(inverse_mass_matrix, Preconditioner):
        return inverse_mass_matrix

    try:
        array = jnp.asarray(inverse_mass_matrix)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "inverse_mass_matrix must be a scalar, a 1-D or 2-D array, a "
            "LowRankInverseMassMatrix or the preconditioner that smile_adaptation returns; "
            f"got {type(inverse_mass_matrix).__name__}."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.float32)
    if array.ndim < 2:
        _check_positive(array, "inverse_mass_matrix")
        scale = jnp.sqrt(array)
        return FlatDiagonalPreconditioner(scale) if array.ndim else ScalarPreconditioner(scale)
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        factor = jnp.linalg.cholesky(array)
        _check(factor, bool_fn=lambda a: bool(np.all(np.isfinite(a))), what="positive definite")
        _check(array, bool_fn=lambda a: np.allclose(a, a.T, rtol=1e-4), what="symmetric")
        no_floor = jnp.zeros(len(array), array.dtype)
        return DensePreconditioner(factor, no_floor, no_floor, jnp.zeros((), array.dtype))
    raise ValueError(
        "inverse_mass_matrix must be a scalar, a vector (d,) or a square matrix (d, d); "
        f"got an array of shape {array.shape}."
    )


def _check(array: Array, bool_fn, what: str) -> None:
    """Raise if a concrete array fails a test; a traced one cannot be looked at."""
    if not isinstance(array, jax.core.Tracer) and not bool_fn(np.asarray(array)):
        raise ValueError(f"inverse_mass_matrix must be {what}.")


def _check_positive(array: Array, name: str) -> None:
    """Raise, with the first number that is wrong, unless all are positive and finite."""
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array)
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise ValueError(f"{name} must be positive and finite, got {wrong[0]}.")


def check_dimension(preconditioner: Preconditioner, position: ArrayTree) -> None:
    """Raise if a preconditioner and a position do not fit (shapes only, static)."""
    match preconditioner:
        case FlatDiagonalPreconditioner(scale=array):
            dimension = array.shape[0]
        case LowRankPreconditioner(sigma=array) | DensePreconditioner(factor=array):
            dimension = array.shape[0]
        case _:
            return
    if dimension != pytree_size(position):
        raise ValueError(
            f"inverse_mass_matrix is for {dimension} parameters (shape {array.shape}), "
            f"but the position has {pytree_size(position)}."
        )
