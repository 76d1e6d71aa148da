"""Penalties on the groups of real networks: what counts as a channel is what `shrink` cuts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import pruning, slimming, tree
from tests.support.reference import positions
from tests.support.topologies import IMAGE, depthwise, grouped, linen, plain, residual


def cut(fn: Any, variables: Any, group: Any, kept: list[int]) -> dict[tuple[str, int], Any]:
    """Which positions of which axes of parameters go if only some positions of a group stay."""
    left = positions(fn, variables, {group.name: kept}, IMAGE)
    return {
        (path.removeprefix("params/"), axis): np.setdiff1d(np.arange(leaf.shape[axis]), where)
        for path, leaf in tree.paths(variables).items()
        if path.startswith("params/")
        for axis, where in enumerate(left[path])
        if len(where) < leaf.shape[axis]
    }


@pytest.mark.parametrize("body", [plain, residual, grouped, depthwise])
def test_a_channel_is_what_is_cut_with_it(body: Any) -> None:
    fn, variables = linen(body)
    groups = slimming.find_groups(fn, variables, IMAGE)
    group, params = groups[0], tree.paths(variables["params"])
    first = group.members[0].channel
    gone = cut(fn, variables, group, np.flatnonzero((first >= 0) & (first != 1)).tolist())
    makers = {
        (path, axis): where
        for (path, axis), where in gone.items()
        if not (path.endswith("kernel") and axis == params[path].ndim - 2)
    }
    assert makers and len(makers) < len(gone)
    weights = {place: np.take(params[place[0]], where, place[1]) for place, where in makers.items()}
    size = sum(w.size for w in weights.values())
    norm = np.sqrt(sum((np.float64(w) ** 2).sum() for w in weights.values()))
    tx = slimming.group_lasso([group], 0.3)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    found, _ = jax.jit(tx.update)(zeros, tx.init(variables["params"]), variables["params"])
    leaves = jax.tree.map(np.asarray, tree.paths(found))
    for (path, axis), where in makers.items():
        expected = 0.3 * np.sqrt(size) * weights[path, axis] / norm
        np.testing.assert_allclose(
            np.take(leaves[path], where, axis), expected, rtol=1e-4, err_msg=path
        )
    for path, leaf in leaves.items():
        assert np.any(leaf) == any(path == member for member, _ in makers), path


def test_kernels_that_read_channels_count_where_everything_does() -> None:
    fn, variables = linen(residual)
    groups = slimming.find_groups(fn, variables, IMAGE)
    params = variables["params"]
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = slimming.importance_weighted(groups, 0.1)
    found, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    touched = {f"params/{path}" for path, leaf in tree.paths(found).items() if np.any(leaf)}
    named = {member.path for group in groups for member in group.members}
    assert touched == {path for path in named if path.startswith("params/")}
    readers = {member.path for group in groups for member in group.members if not member.makes}
    assert readers and readers <= touched


def test_penalties_stand_inside_sparse_training() -> None:
    """Regrowing looks through the state of the inner optimizer, penalties included."""
    fn, variables = linen(plain)
    params = variables["params"]
    groups = slimming.find_groups(fn, variables, IMAGE)
    inner = optax.chain(
        slimming.network_slimming(1e-3),
        slimming.group_lasso(groups, 1e-3),
        optax.sgd(0.1, momentum=0.9),
    )
    schedule = pruning.constant(0.5, every=1)
    tx = cj.prune(inner, schedule=schedule, regrow=pruning.rigl(0.3, end=4))
    state = tx.init(params)
    for _ in range(2):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = jax.jit(tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    kept = jax.tree.leaves(cj.masks(state))
    assert kept and all(0 < mask.sum() < mask.size for mask in kept)
