"""Budgets: exact integers, against the papers' formulas in Python."""

import math
from fractions import Fraction

import hypothesis
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from compressjax import pruning
from tests import catalogue

# Sparsities as people write them: a few decimals.
_sparsities = st.integers(0, 9999).map(lambda n: n / 10_000)
_sizes = st.integers(1, 2**31 - 1)
_shapes = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 128), st.integers(1, 128)),
    ),
    min_size=1,
    max_size=8,
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(_sparsities, _sizes)
def test_num_kept_is_exact(sparsity: float, size: int) -> None:
    exact = Fraction(round(sparsity * 10_000), 10_000) * size
    assert int(pruning.num_kept(jnp.float32(sparsity), size)) == size - round(exact)


def test_num_kept_refuses_more_than_31_bits() -> None:
    with pytest.raises(ValueError, match="2147483648 weights share one budget"):
        pruning.num_kept(0.5, 2**31)


@hypothesis.given(_sparsities, _shapes)
def test_global_counts_all_leaves_together(sparsity: float, shapes: dict) -> None:
    (share,) = pruning.global_()(jnp.float32(sparsity), shapes)
    total = sum(math.prod(shape) for shape in shapes.values())
    assert share.paths == tuple(shapes)
    assert int(share.keep) == total - round(Fraction(round(sparsity * 10_000), 10_000) * total)


@hypothesis.given(_sparsities, _shapes)
def test_uniform_counts_each_leaf(sparsity: float, shapes: dict) -> None:
    for share in pruning.uniform()(jnp.float32(sparsity), shapes):
        size = math.prod(shapes[share.paths[0]])
        assert int(share.keep) == size - round(Fraction(round(sparsity * 10_000), 10_000) * size)


@pytest.mark.parametrize(
    ("budget", "weight"),
    [
        (pruning.erk(), lambda shape: float(sum(shape))),
        (
            pruning.erdos_renyi(),
            lambda shape: float(math.prod(shape[:-2]) * (shape[-2] + shape[-1])),
        ),
    ],
    ids=["erk", "erdos_renyi"],
)
@hypothesis.given(_sparsities, _shapes)
def test_proportional_budgets(budget: pruning.Budget, weight, sparsity: float, shapes) -> None:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shares = budget(jnp.float32(sparsity), shapes)
    counts = {share.paths[0]: int(share.keep) for share in shares}
    kept = sum(sizes.values()) - round(
        Fraction(round(sparsity * 10_000), 10_000) * sum(sizes.values())
    )
    assert sum(counts.values()) == kept
    densities = catalogue.proportional_densities(
        {name: weight(shape) for name, shape in shapes.items()}, sizes, kept
    )
    for name, count in counts.items():
        assert 0 <= count <= sizes[name]
        # Rounding moves a count by half a unit, and the rest of all of them lands on one leaf.
        expected = densities[name] * sizes[name]
        assert abs(count - expected) <= 0.5 * (len(shapes) + 1) + 1e-5 * expected
