"""The size of compiled programs grows in proportion to the number of leaves of a network."""

import jax
import jax.numpy as jnp
import pytest

from blackjax_smile import _tree
from blackjax_smile.preconditioners.variances import geometric_mean


def kept_if_finite(tree):
    new = jax.tree.map(jnp.exp, tree)
    return _tree.select(_tree.all_finite(new), new, tree)


def in_units(tree):
    unit = geometric_mean(tree)
    return jax.tree.map(lambda x: x / unit, tree)


@pytest.mark.parametrize("function", [kept_if_finite, in_units])
@pytest.mark.parametrize("num_chains", [1, 3])
def test_in_proportion_to_the_leaves(function, num_chains):
    def size(num_leaves):
        tree = {str(i): jnp.ones((num_chains, 3, 2 + i)) for i in range(num_leaves)}
        return len(jax.jit(jax.vmap(function)).lower(tree).compile().as_text().splitlines())

    # Four times where each leaf's kernel repeats a chain of all leaves' scalars.
    assert size(80) < 2.5 * size(40)
