"""Eigendecompositions that are safe side by side, under `jax.vmap`."""

import jax
import jax.numpy as jnp
from blackjax.types import Array

__all__ = ["eigh"]


@jax.custom_batching.custom_vmap
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    Under `jax.vmap` the matrices are taken one after the other: a program with many
    batched decompositions at once (ten chains, both factors of every layer) was seen to
    hang on a CPU with two threads, and does not with single ones. The decompositions
    of a warmup are few.
    """
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    return eigenvalues, eigenvectors


@eigh.def_vmap
def _one_by_one(axis_size, in_batched, matrices):
    del axis_size, in_batched
    return jax.lax.map(eigh, matrices), (True, True)
