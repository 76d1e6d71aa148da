"""Paths name leaves, globs select them, and every misfit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressjax import tree

VARIABLES = {
    "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(4)}},
    "params": {
        "Conv_0": {"bias": jnp.zeros(4), "kernel": jnp.zeros((3, 3, 1, 4))},
        "Dense_0": {"kernel": jnp.zeros((4, 2), jnp.bfloat16)},
    },
}
PATHS = [
    "batch_stats/BatchNorm_0/mean",
    "params/Conv_0/bias",
    "params/Conv_0/kernel",
    "params/Dense_0/kernel",
]


def test_paths_are_in_the_order_of_the_leaves():
    named = tree.paths(VARIABLES)
    assert list(named) == PATHS
    for leaf, expected in zip(named.values(), jax.tree.leaves(VARIABLES), strict=True):
        assert leaf is expected


@pytest.mark.parametrize(
    ("nested", "expected"),
    [
        ([1, (2, 3)], ["0", "1/0", "1/1"]),
        ({"a": [1, {"b": 2}]}, ["a/0", "a/1/b"]),
        (7, [""]),
        ({"a": None, "b": {}}, []),
        ({3: 1}, ["3"]),
        (jax.ShapeDtypeStruct((2,), "float32"), [""]),
    ],
)
def test_paths_of_any_pytree(nested, expected):
    assert list(tree.paths(nested)) == expected


def test_paths_of_named_tuples_use_field_names():
    import optax

    state = optax.ScaleByAdamState(count=0, mu={"w": 1.0}, nu={"w": 2.0})
    assert list(tree.paths(state)) == ["count", "mu/w", "nu/w"]


keys = st.text("abcAB_01", min_size=1, max_size=4)
nested = st.recursive(
    st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=8
)


@given(st.dictionaries(keys, nested, min_size=1, max_size=3))
def test_from_paths_undoes_paths(mapping):
    assert tree.from_paths(tree.paths(mapping)) == mapping


@pytest.mark.parametrize("order", [1, -1])
def test_from_paths_refuses_a_leaf_that_is_a_branch(order):
    leaves = dict([("a/b", 1), ("a/b/c", 2)][::order])
    with pytest.raises(ValueError, match="paths must not nest"):
        tree.from_paths(leaves)


def test_map_with_path_passes_the_leaves_of_all_trees():
    other = jax.tree.map(lambda x: x + 1, VARIABLES)
    found = tree.map_with_path(lambda path, x, y: (path, float((y - x).max())), VARIABLES, other)
    assert found["params"]["Dense_0"]["kernel"] == ("params/Dense_0/kernel", 1.0)


def test_replace_changes_only_the_named_leaves():
    new = tree.replace(VARIABLES, {"params/Conv_0/bias": jnp.ones(4)})
    np.testing.assert_array_equal(new["params"]["Conv_0"]["bias"], np.ones(4))
    assert new["params"]["Conv_0"]["kernel"] is VARIABLES["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(VARIABLES["params"]["Conv_0"]["bias"], np.zeros(4))


def test_replace_names_a_path_that_is_not_there():
    with pytest.raises(ValueError, match=r"'params/Conv_0/bais'.*params/Conv_0/bias"):
        tree.replace(VARIABLES, {"params/Conv_0/bais": 0})


def test_replace_takes_a_path_literally():
    weird = {"a[0]": 1, "a0": 2, "b*": 3, "bc": 4}
    assert tree.replace(weird, {"a[0]": 5, "b*": 6}) == {"a[0]": 5, "a0": 2, "b*": 6, "bc": 4}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("**/kernel", PATHS[2:]),
        ("*/kernel", PATHS[2:]),
        ("params/Conv_?/*", PATHS[1:3]),
        (["params/Dense_0/kernel", "*bias"], [PATHS[1], PATHS[3]]),
        ("**/batch_stats/*", PATHS[:1]),
        (PATHS[3], PATHS[3:]),
        ((), []),
    ],
)
def test_match_keeps_the_order_of_the_candidates(patterns, expected):
    assert tree.match(patterns, PATHS, what="select") == expected


def test_match_is_case_sensitive():
    with pytest.raises(ValueError, match="matches none"):
        tree.match("**/Kernel", PATHS, what="select")


def test_match_names_the_pattern_and_near_misses():
    with pytest.raises(ValueError, match=r"protect pattern 'params/Dense_1/ker'.*Dense_0/kernel"):
        tree.match(["**/kernel", "params/Dense_1/ker"], PATHS, what="protect")


def test_match_of_nothing_says_that_there_are_no_paths():
    with pytest.raises(ValueError, match="there are no paths"):
        tree.match("*", [], what="select")


def test_sizes_count_elements_and_bytes():
    assert tree.size(VARIABLES) == 4 + 4 + 36 + 8
    assert tree.num_bytes(VARIABLES) == 4 * (4 + 4 + 36) + 2 * 8
    shapes = jax.eval_shape(lambda: VARIABLES)
    assert (tree.size(shapes), tree.num_bytes(shapes)) == (52, 192)
