"""`choose` and `choose_leaves` against a stable sort, for every pattern."""

import functools
from typing import Any

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax import pruning
from compressjax.pruning.choose import Growth, choose_leaves
from tests.support import mask_oracles

_SHAPES = {"conv": (3, 1, 8, 4), "dense": (16, 6)}
_CASES = {
    "unstructured": (pruning.unstructured(), mask_oracles.Pattern(), pruning.global_()),
    "2:4": (pruning.n_m(2, 4), mask_oracles.n_m(2, 4, -2), pruning.uniform()),
    "1:2 of outputs": (pruning.n_m(1, 2, axis=-1), mask_oracles.n_m(1, 2, -1), pruning.global_()),
    "4x2": (pruning.block(4, 2), mask_oracles.block(4, 2), pruning.global_()),
    "channels": (pruning.channels(), mask_oracles.channels(-1), pruning.uniform()),
    "inputs": (pruning.channels(-2), mask_oracles.channels(-2), pruning.erk()),
}


def _num_units(pattern: mask_oracles.Pattern) -> dict[str, int]:
    return {name: len(np.unique(pattern.units(shape))) for name, shape in _SHAPES.items()}


@functools.cache
def _compiled(case: str) -> Any:
    pattern, _, budget = _CASES[case]

    def function(values: Any, sparsity: Any, live: Any, fraction: Any, growth: Any) -> Any:
        return choose_leaves(
            values, sparsity, budget, pattern, live=live, growth=Growth(fraction, growth)
        )

    return jax.jit(function)


@pytest.mark.parametrize("case", _CASES)
@hypothesis.settings(max_examples=10)
@hypothesis.given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 99).map(lambda n: n / 100),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.booleans(),
)
def test_keeps_and_regrows_what_a_sort_does(
    case: str, seed: int, sparsity: float, fraction: float, first: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Few values, so that many units tie; eighths, so that means are exact.
    values, growth = (
        {name: rng.integers(-4, 5, shape).astype(np.float32) / 8 for name, shape in _SHAPES.items()}
        for _ in range(2)
    )
    _, pattern, budget = _CASES[case]
    units = _num_units(pattern)
    shares = [(share.paths, int(share.keep)) for share in budget(sparsity, _SHAPES, units)]
    live = {name: np.ones(shape, bool) for name, shape in _SHAPES.items()}
    if not first:
        live = mask_oracles.choose(growth, shares, pattern)
    expected = mask_oracles.choose(values, shares, pattern, live, fraction, growth)
    compiled = _compiled(case)
    found = compiled(
        *jax.tree.map(jnp.asarray, (values, jnp.float32(sparsity), live)),
        jnp.float32(fraction),
        jax.tree.map(jnp.asarray, growth),
    )
    assert compiled._cache_size() == 1
    for paths, count in shares:
        kept = 0
        for name in paths:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
            kept += len(np.unique(pattern.units(_SHAPES[name])[np.asarray(found[name])]))
        most = sum(units[name] for name in paths)
        assert kept == min(count, most if pattern.groups is None else most // 2)


def test_one_shot_over_a_tree() -> None:
    rng = np.random.default_rng(0)
    values = {
        name: {"kernel": np.abs(rng.normal(size=shape)).astype(np.float32), "bias": np.ones(4)}
        for name, shape in _SHAPES.items()
    }
    chex.clear_trace_counter()
    compiled = jax.jit(
        chex.assert_max_traces(
            lambda values, sparsity: pruning.choose(values, sparsity, budget=pruning.global_()), n=1
        )
    )
    flat = np.concatenate([values[name]["kernel"].ravel() for name in _SHAPES])
    for sparsity in (0.0, 0.3, 0.75, 0.99):
        keep = compiled(values, jnp.float32(sparsity))
        order = np.argsort(-flat, kind="stable")[: flat.size - round(sparsity * flat.size)]
        expected = np.isin(np.arange(flat.size), order)
        found = np.concatenate([np.ravel(keep[name]["kernel"]) for name in _SHAPES])
        np.testing.assert_array_equal(found, expected)
        assert all(keep[name]["bias"] is None for name in _SHAPES)


@pytest.mark.parametrize("pattern", [pruning.n_m(2, 4), pruning.block(4, 1), pruning.channels()])
def test_sparsity_zero_and_exempt_leaves_keep_everything(pattern: pruning.Pattern) -> None:
    values = {name: {"kernel": jnp.ones(shape)} for name, shape in _SHAPES.items()}
    choose = jax.jit(
        functools.partial(pruning.choose, budget=pruning.by_path({"conv/*": 0.0}), pattern=pattern)
    )
    assert all(mask.all() for mask in jax.tree.leaves(choose(values, 0.0)))
    keep = choose(values, 0.5)
    assert keep["conv"]["kernel"].all()
    assert int(keep["dense"]["kernel"].sum()) == 48


@pytest.mark.parametrize(
    ("budget", "pattern"),
    [
        (pruning.uniform(), pruning.n_m(2, 4)),
        (pruning.global_(), pruning.block(2, 2)),
        (pruning.erk(), pruning.unstructured()),
        (pruning.by_path({"a/*": 0.9, "c/*": 0.0}, pruning.erdos_renyi()), pruning.block(1, 4)),
    ],
)
def test_empty_leaves_take_nothing_from_the_others(
    budget: pruning.Budget, pattern: pruning.Pattern
) -> None:
    shapes = {"a": (0, 8, 4), "b": (8, 4), "c": (3, 0, 4)}
    values = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    keep = jax.jit(functools.partial(pruning.choose, budget=budget, pattern=pattern))(values, 0.5)
    for name, shape in shapes.items():
        assert keep[name]["kernel"].shape == shape
    assert int(keep["b"]["kernel"].sum()) == 16


@pytest.mark.parametrize("sparsity", [1.0, -0.5, 2, float("nan")])
def test_refuses_a_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        pruning.choose({"kernel": jnp.ones((2, 2))}, sparsity)


def test_refuses_what_cannot_be_pruned() -> None:
    with pytest.raises(TypeError, match="a/kernel has dtype int32; .*leave it out of select"):
        pruning.choose({"a": {"kernel": jnp.ones((2, 2), jnp.int32)}}, 0.5)
    with pytest.raises(ValueError, match="select pattern .* matches none of the 1 paths"):
        pruning.choose({"bias": jnp.ones(2)}, 0.5)
    with pytest.raises(ValueError, match="2:4 sparsity needs .*a/kernel"):
        pruning.choose({"a": {"kernel": jnp.ones((6, 2))}}, 0.5, pattern=pruning.n_m(2, 4))
