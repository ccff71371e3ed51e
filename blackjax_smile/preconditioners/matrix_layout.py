"""How the leaves of a tree become matrices: a kernel and its bias make one."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.types import Array, ArrayTree

from blackjax_smile import _tree

__all__ = ["Block", "MatrixLayout", "matrix_layout"]

#: Names of a layer's kernel and of its bias, alone or inside a longer name
#: ("w1" and "b1", "dense_kernel" and "dense_bias").
KERNEL_NAME = re.compile(r"(?i)^(|.*[^a-z])(kernel|weights?|w)((?:_?\d+)?)$")
BIAS_NAMES = ("bias", "biases", "b")

#: Attributes that libraries put between a parameter's name and its array.
BOXES = ("value", "raw_value")


class Block(NamedTuple):
    """A matrix made of one leaf, or of a kernel and its bias.

    kernel, bias
        Indices of the leaves in the flattened tree; ``bias`` is None without one.
    shape
        Rows and columns, the bias included.
    bias_is_row
        Whether the bias is the last row (kernels of shape ``(..., out)``) or the
        last column (``(out, ...)``).
    """

    kernel: int
    bias: int | None
    shape: tuple[int, int]
    bias_is_row: bool

    @property
    def leaves(self) -> list[int]:
        """Indices of the kernel and, if there is one, of the bias."""
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]

    @property
    def bias_axis(self) -> int:
        """Axis along which the bias prolongs the kernel."""
        return 0 if self.bias_is_row else 1


class MatrixLayout(NamedTuple):
    """The blocks of a tree, and the shapes of its leaves. Static and hashable."""

    blocks: tuple[Block, ...]
    shapes: tuple[tuple[int, ...], ...]

    def to_matrices(self, tree: ArrayTree) -> list[Array]:
        """Return the matrices, in the order of the blocks.

        Raises
        ------
        ValueError
            If the tree has other leaves than the layout was made for.
        """
        return [
            jnp.concatenate(parts, block.bias_axis)
            for block, parts in zip(self.blocks, self._parts(tree), strict=True)
        ]

    def map(
        self,
        function: Callable[[Array, Array, Array], Array],
        left: list[Array],
        right: list[Array],
        tree: ArrayTree,
    ) -> ArrayTree:
        """Return the tree whose matrices are ``function(left, right, matrix)``.

        A vector among the sides (a diagonal) treats rows, or columns, one by one. Then a
        kernel and its bias are mapped apart: to join them would copy the kernel.

        Parameters
        ----------
        function
            Returns a matrix of the same shape.
        left, right
            What belongs to the rows and to the columns of each matrix: a vector, or a
            square matrix.
        tree
            Leaves as the layout was made for.

        Raises
        ------
        ValueError
            If the tree has other leaves than the layout was made for.
        """
        mapped = {i: x for i, x in enumerate(jax.tree.leaves(tree)) if 0 in jnp.shape(x)}
        for block, a, b, parts in zip(self.blocks, left, right, self._parts(tree), strict=True):
            axis = block.bias_axis
            ends = [part.shape[axis] for part in parts[:-1]]
            if (a, b)[axis].ndim == 1:
                left_parts = jnp.split(a, ends) if axis == 0 else [a] * len(parts)
                right_parts = jnp.split(b, ends) if axis == 1 else [b] * len(parts)
                parts = list(map(function, left_parts, right_parts, parts))
            else:
                parts = jnp.split(function(a, b, jnp.concatenate(parts, axis)), ends, axis)
            for i, part in zip(block.leaves, parts, strict=True):
                mapped[i] = part.reshape(self.shapes[i])
        ordered = [mapped[i] for i in range(len(self.shapes))]
        return jax.tree.unflatten(jax.tree.structure(tree), ordered)

    def _parts(self, tree: ArrayTree) -> list[list[Array]]:
        """Return of each block the kernel and, if it has one, the bias as matrices."""
        leaves = jax.tree.leaves(tree)
        if tuple(jnp.shape(leaf) for leaf in leaves) != self.shapes:
            raise ValueError(
                f"The preconditioner is for leaves of shapes {self.shapes}, but the position "
                f"has {[jnp.shape(leaf) for leaf in leaves]}."
            )
        parts = []
        for block in self.blocks:
            shape = (-1, block.shape[1]) if block.bias_axis == 0 else (block.shape[0], -1)
            parts.append([leaves[i].reshape(shape) for i in block.leaves])
        return parts


def matrix_layout(tree: ArrayTree) -> MatrixLayout:
    """Find the matrices in a tree of parameters.

    A leaf of two axes or more is a matrix of (product of the leading axes, last);
    if it is called ``weight`` and has more than two, of (first, product of the
    others), as PyTorch and equinox store convolutions; with a bias of several axes that are
    the kernel's last, of (product of the others, product of these). A bias is joined to the
    kernel that its name and its size say it belongs to, or that it makes a pair
    (kernel, bias) with in a list or tuple: the gradient of a bias is that of a row
    of the kernel whose input is constant. Vectors are matrices of one column.
    """
    paths_leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [_names(path) for path, _ in paths_leaves]
    shapes = tuple(jnp.shape(leaf) for _, leaf in paths_leaves)
    dtypes = [_tree.accumulation_dtype(leaf) for _, leaf in paths_leaves]
    index = {name: i for i, name in enumerate(names)}
    bias_of = {}
    for i, name in enumerate(names):
        for candidate in _bias_names(name, names):
            j = index.get(candidate)
            if j is not None and dtypes[i] == dtypes[j] and _fits(shapes[i], shapes[j]):
                bias_of[i] = j
                break
    joined = set(bias_of.values())
    blocks = tuple(
        _block(i, bias_of.get(i), names[i][-1:], shapes)
        for i in range(len(shapes))
        # A leaf without an element has nothing to whiten.
        if i not in joined and (i in bias_of or 0 not in shapes[i])
    )
    return MatrixLayout(blocks, shapes)


def _names(path) -> tuple[str, ...]:
    """Return a leaf's path as names."""
    names = tuple(
        f"[{key.idx}]"
        if isinstance(key, jax.tree_util.SequenceKey)
        else str(getattr(key, "key", getattr(key, "name", key)))
        for key in path
    )
    return names[:-1] if len(names) > 1 and names[-1] in BOXES else names


def _bias_names(name: tuple[str, ...], names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the names that the bias of the kernel ``name`` may have."""
    if not name:
        return []
    parent, last = name[:-1], name[-1]
    if last == "[0]":
        siblings = [other for other in names if other[: len(parent)] == parent]
        return [(*parent, "[1]")] if len(siblings) == 2 else []
    match = KERNEL_NAME.match(last)
    if match is None:
        return []
    before, _, after = match.groups()
    return [
        (*parent, before + case(bias) + after) for bias in BIAS_NAMES for case in (str, str.upper)
    ]


def _fits(kernel: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Say whether a bias has one element for each output of a kernel, on either end."""
    if _is_tail(kernel, bias):
        return True
    size = math.prod(bias)
    if len(kernel) < 2 or size == 0 or max(bias, default=0) != size:
        return False
    return size in (kernel[-1], kernel[0])


def _is_tail(kernel: tuple[int, ...], bias: tuple[int, ...]) -> bool:
    """Say whether the outputs have several axes: (heads, size) in flax's attention."""
    return 1 < len(bias) < len(kernel) and kernel[-len(bias) :] == bias and min(bias) > 0


def _block(
    i: int, bias: int | None, name: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Block:
    shape = shapes[i]
    if len(shape) < 2:
        return Block(i, None, (math.prod(shape), 1), True)
    out_is_first = "weight" in "".join(name).lower()
    if bias is not None:
        outputs = math.prod(shapes[bias])
        if _is_tail(shape, shapes[bias]):
            return Block(i, bias, (math.prod(shape) // outputs + 1, outputs), True)
        if shape[0] != shape[-1]:
            out_is_first = outputs == shape[0]
    elif len(shape) == 2:
        out_is_first = False
    if out_is_first:
        rows, columns = shape[0], math.prod(shape[1:])
        return Block(i, bias, (rows, columns + (bias is not None)), False)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return Block(i, bias, (rows + (bias is not None), columns), True)
