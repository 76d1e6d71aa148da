"""Budgets: exact integers, against the papers' formulas in Python."""

import math
from fractions import Fraction
from typing import Any

import hypothesis
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from compressjax import pruning
from tests import catalogue

# Sparsities as people write them: a few decimals.
_sparsities = st.integers(0, 9999).map(lambda n: n / 10_000)
_sizes = st.integers(1, 2**31 - 1)
# How many weights make one unit, as a block pattern has it; and leaves without weights.
_block = st.sampled_from([1, 4])
_shapes = st.dictionaries(
    st.sampled_from("abcde"),
    st.one_of(
        st.tuples(st.integers(0, 75).map(lambda n: 4 * n), st.integers(1, 300)),
        st.tuples(
            st.integers(1, 5),
            st.integers(1, 5),
            st.integers(1, 32).map(lambda n: 4 * n),
            st.integers(1, 128),
        ),
    ),
    min_size=1,
    max_size=5,
)


def _kept(sparsity: float, size: int) -> int:
    return size - round(Fraction(round(sparsity * 10_000), 10_000) * size)


@hypothesis.settings(max_examples=300)
@hypothesis.given(_sparsities, _sizes)
def test_num_kept_is_exact(sparsity: float, size: int) -> None:
    assert int(pruning.num_kept(jnp.float32(sparsity), size)) == _kept(sparsity, size)


def test_num_kept_refuses_more_than_31_bits() -> None:
    with pytest.raises(ValueError, match="2147483648 weights share one budget"):
        pruning.num_kept(0.5, 2**31)


def _units(shapes: dict[str, tuple[int, ...]], block: int) -> dict[str, int]:
    return {name: math.prod(shape) // block for name, shape in shapes.items()}


@hypothesis.settings(max_examples=50)
@hypothesis.given(_sparsities, _shapes, _block)
def test_global_counts_all_leaves_together(sparsity: float, shapes: dict, block: int) -> None:
    units = _units(shapes, block)
    (share,) = pruning.global_()(jnp.float32(sparsity), shapes, units)
    assert share.paths == tuple(shapes)
    assert int(share.keep) == _kept(sparsity, sum(units.values()))


@hypothesis.settings(max_examples=50)
@hypothesis.given(_sparsities, _shapes, _block)
def test_uniform_counts_each_leaf(sparsity: float, shapes: dict, block: int) -> None:
    units = _units(shapes, block)
    shares = pruning.uniform()(jnp.float32(sparsity), shapes, units)
    assert {share.paths: int(share.keep) for share in shares} == {
        (name,): _kept(sparsity, size) for name, size in units.items()
    }


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
@hypothesis.given(_sparsities, _shapes, _block)
def test_proportional_budgets(
    budget: pruning.Budget, weight: Any, sparsity: float, shapes: dict, block: int
) -> None:
    units = _units(shapes, block)
    shares = budget(jnp.float32(sparsity), shapes, units)
    counts = {share.paths[0]: int(share.keep) for share in shares}
    filled = {name: size for name, size in units.items() if size}
    assert counts.keys() == filled.keys()
    kept = _kept(sparsity, sum(filled.values()))
    assert sum(counts.values()) == kept
    if not filled:
        return
    # The papers' densities are those of the weights, whatever the units are.
    densities = catalogue.proportional_densities(
        {name: weight(shapes[name]) / block for name in filled}, filled, kept
    )
    for name, count in counts.items():
        assert 0 <= count <= filled[name]
        # Rounding moves a count by half a unit, and the rest of all of them lands on one leaf.
        expected = densities[name] * filled[name]
        assert abs(count - expected) <= 0.5 * (len(shapes) + 1) + 1e-5 * expected


def test_proportional_densities_hold_for_channels() -> None:
    shapes = {"conv": (3, 3, 64, 1000), "dense": (100, 2000)}
    shares = pruning.erk()(0.8, shapes, {"conv": 1000, "dense": 2000})
    conv, dense = (int(share.keep) for share in sorted(shares))
    weights = 1070 / (3 * 3 * 64 * 1000), 2100 / (100 * 2000)
    assert conv + dense == 600
    assert abs(conv / 1000 / (dense / 2000) - weights[0] / weights[1]) < 0.01


@hypothesis.settings(max_examples=50)
@hypothesis.given(_sparsities, _shapes, _block, st.data())
def test_by_path(sparsity: float, shapes: dict, block: int, data: st.DataObject) -> None:
    units, names = _units(shapes, block), list(shapes)
    free, spared = (names[: data.draw(st.integers(1, len(names)))] for _ in range(2))
    rules = [*((name, 0.0) for name in free), *((name, 0.5) for name in spared)]
    budget = pruning.by_path(rules, pruning.global_())
    shares = budget(jnp.float32(sparsity), shapes, units)
    rest = tuple(name for name in names if name not in {*free, *spared})
    expected = {(name,): units[name] for name in free}
    expected |= {
        (name,): _kept(min(sparsity, 0.5), units[name]) for name in spared if name not in free
    }
    if rest:
        expected[rest] = _kept(sparsity, sum(units[name] for name in rest))
    assert {share.paths: int(share.keep) for share in shares} == expected
    assert all(share.whole == (share.paths[0] in free) for share in shares)


def test_by_path_defaults_to_uniform_and_takes_budgets() -> None:
    shapes = {"a/kernel": (4, 5), "b/kernel": (8, 5), "c/kernel": (2, 5)}
    budget = pruning.by_path({"[ab]/*": pruning.global_()})
    assert [(share.paths, int(share.keep)) for share in budget(0.5, shapes)] == [
        (("a/kernel", "b/kernel"), 30),
        (("c/kernel",), 5),
    ]


def test_by_path_refuses_bad_rules() -> None:
    with pytest.raises(
        ValueError, match=r"highest sparsity of 'a/\*' must be in \[0, 1\), found 1"
    ):
        pruning.by_path({"a/*": 1.0})
    with pytest.raises(ValueError, match=r"highest sparsity of 'default' .* found -0.5"):
        pruning.by_path({}, -0.5)
    with pytest.raises(ValueError, match="by_path pattern 'first/kernl' .*first/kernel"):
        pruning.by_path({"first/kernl": 0.0})(0.5, {"first/kernel": (2, 2)})
