"""Patterns: N:M against a sort of every group, units against labels, and both while regrowing."""

from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from compressjax import pruning
from tests.support import mask_oracles
from tests.support.devices import run_on_eight_devices


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("shape", [(16, 3), (3, 3, 8, 2), (8, 1)])
def test_keeps_the_best_n_of_every_group(n: int, m: int, shape: tuple[int, ...]) -> None:
    ranks = np.random.default_rng(n * m).integers(0, 5, shape).astype(np.uint32)
    keep = np.asarray(pruning.n_m(n, m).allowed(jnp.asarray(ranks)))
    rows = np.moveaxis(ranks, -2, -1).reshape(-1, m).astype(int)
    kept = np.moveaxis(keep, -2, -1).reshape(-1, m)
    for row, mask in zip(rows, kept, strict=True):
        expected = np.zeros(m, bool)
        expected[np.argsort(-row, kind="stable")[:n]] = True
        np.testing.assert_array_equal(mask, expected)


def test_another_axis() -> None:
    ranks = jnp.arange(24, dtype=jnp.uint32).reshape(4, 2, 3)
    keep = pruning.n_m(1, 4, axis=0).allowed(ranks)
    np.testing.assert_array_equal(keep, np.arange(24).reshape(4, 2, 3) >= 18)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["uniform", "global_", "erk"])
def test_holds_under_every_budget(name: str, sparsity: float) -> None:
    shapes = {"conv": (3, 3, 8, 4), "dense": (12, 5)}
    rng = np.random.default_rng(0)
    params = {
        k: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)} for k, s in shapes.items()
    }
    tx = pruning.prune(
        optax.sgd(0.1),
        schedule=pruning.one_shot(sparsity),
        budget=getattr(pruning, name)(),
        pattern=pruning.n_m(2, 4),
    )
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    total = 0
    for leaf in jax.tree.leaves(pruning.masks(state)):
        groups = np.moveaxis(np.asarray(leaf), -2, -1).reshape(-1, 4).sum(-1)
        assert (groups <= 2).all()
        if sparsity <= 0.5 and name != "erk":
            assert (groups == 2).all()
        total += int(leaf.sum())
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    if name != "erk":
        assert total == min(size // 2, size - round(sparsity * size))


_UNITS = {
    "1x4": (pruning.block(1, 4), mask_oracles.block(1, 4)),
    "4x1": (pruning.block(4, 1), mask_oracles.block(4, 1)),
    "16x1": (pruning.block(16, 1), mask_oracles.block(16, 1)),
    "outputs": (pruning.channels(), mask_oracles.channels(-1)),
    "inputs": (pruning.channels(-2), mask_oracles.channels(-2)),
}


@pytest.mark.parametrize("name", _UNITS)
@hypothesis.settings(max_examples=10)
@hypothesis.given(
    st.integers(0, 2**31 - 1), st.sampled_from([(32, 8), (3, 2, 16, 4)]), st.booleans()
)
def test_units_are_averaged_and_kept_as_one(
    name: str, seed: int, shape: tuple[int, ...], half: bool
) -> None:
    (pattern, oracle), rng = _UNITS[name], np.random.default_rng(seed)
    pattern.check("kernel", shape)
    units = oracle.units(shape)
    values = rng.integers(-8, 9, shape) / 8
    # In bfloat16 too: a mean is not rounded to the precision of the weights.
    pooled = pattern.pool(jnp.asarray(values, jnp.bfloat16 if half else jnp.float32))
    np.testing.assert_allclose(pooled.ravel(), mask_oracles.means(values, units), rtol=1e-6)
    keep = rng.random(pooled.shape) < 0.5
    np.testing.assert_array_equal(pattern.spread(jnp.asarray(keep), shape), keep.ravel()[units])


def test_channels_of_a_vector_are_its_elements() -> None:
    pattern = pruning.channels()
    pattern.check("bias", (3,))
    np.testing.assert_array_equal(pattern.pool(jnp.arange(3.0)), [0, 1, 2])
    np.testing.assert_array_equal(
        pattern.spread(jnp.array([True, False, True]), (3,)), [True, False, True]
    )


_REGROWN = {
    "2:4": (pruning.n_m(2, 4), mask_oracles.n_m(2, 4, -2), pruning.uniform()),
    "1:2 of outputs": (pruning.n_m(1, 2, axis=-1), mask_oracles.n_m(1, 2, -1), pruning.global_()),
    "4x2": (pruning.block(4, 2), mask_oracles.block(4, 2), pruning.global_()),
    "outputs": (pruning.channels(), mask_oracles.channels(-1), pruning.uniform()),
}


@pytest.mark.parametrize("name", _REGROWN)
def test_rigl_holds_the_pattern_and_the_count(name: str) -> None:
    pattern, oracle, budget = _REGROWN[name]
    shapes = {"conv": (2, 1, 8, 4), "dense": (16, 6)}
    tx = pruning.prune(
        optax.adam(0.1),
        schedule=pruning.constant(0.7, every=1),
        budget=budget,
        pattern=pattern,
        regrow=pruning.rigl(0.5),
    )

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)

    def draw() -> Any:
        return {
            leaf: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
            for leaf, shape in shapes.items()
        }

    units = {leaf: oracle.units(shape) for leaf, shape in shapes.items()}
    counts = {leaf: int(unit.max()) + 1 for leaf, unit in units.items()}
    shares = [(share.paths, int(share.keep)) for share in budget(jnp.float32(0.7), shapes, counts)]
    params = draw()
    state, before, moved = tx.init(params), None, 0
    for _ in range(4):
        params, state = step(params, state, draw())
        masks = {leaf: np.asarray(state.keep[leaf]["kernel"]) for leaf in shapes}
        for paths, count in shares:
            assert sum(len(np.unique(units[leaf][masks[leaf]])) for leaf in paths) == count
        for leaf, mask in masks.items():
            kept = mask_oracles.means(mask, units[leaf])
            assert set(kept.tolist()) <= {0.0, 1.0}
            if oracle.groups is not None:
                groups = oracle.groups(mask.shape)
                assert np.bincount(groups[mask]).max() <= oracle.n
        if before is not None:
            moved += sum(int((masks[leaf] & ~before[leaf]).sum()) for leaf in shapes)
        before = masks
    assert moved > 0


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (-1, 1)])
def test_refuses_impossible_blocks(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"found rows={rows}, columns={columns}"):
        pruning.block(rows, columns)


@pytest.mark.parametrize(
    ("pattern", "shape", "message"),
    [
        (
            pruning.block(4, 2),
            (6, 8),
            r"blocks of 4 inputs and 2 outputs do not divide block/kernel "
            r"with shape \(6, 8\), which has 6 inputs and 8 outputs; leave it out of select",
        ),
        (pruning.block(4, 2), (3, 3, 8, 7), "has 8 inputs and 7 outputs"),
        (pruning.block(1, 1), (8,), r"block/kernel has shape \(8,\); select only dense and conv"),
        (pruning.channels(-2), (8,), r"axis -2, but block/kernel has shape \(8,\); select only"),
        (pruning.channels(4), (3, 3, 8, 7), "axis 4, but block/kernel has shape"),
        (pruning.channels(), (0, 7), r"block/kernel has shape \(0, 7\); leave it out of select"),
    ],
)
def test_refuses_leaves_without_such_units(
    pattern: pruning.Pattern, shape: tuple[int, ...], message: str
) -> None:
    tx = pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.5), pattern=pattern)
    with pytest.raises(ValueError, match=message):
        tx.init({"block": {"kernel": jnp.zeros(shape)}})


_MESH_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from compressjax import pruning

params = {'kernel': np.random.default_rng(0).normal(size=(2, 3, 64, 32)).astype(np.float32)}
txs = [
    pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.7), pattern=pattern)
    for pattern in (pruning.n_m(2, 4), pruning.block(4, 2), pruning.channels())
]

@jax.jit
def update(params, states):
    return [tx.update(params, state, params)[1] for tx, state in zip(txs, states)]

def masks(params):
    states = update(params, [tx.init(params) for tx in txs])
    return [pruning.masks(state)['kernel'] for state in states]

expected = [np.asarray(mask) for mask in masks(params)]
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, None, 'x', 'y'))
        for found, mask in zip(masks(jax.device_put(params, sharding)), expected):
            assert found.sharding.is_equivalent_to(sharding, 4), found.sharding
            np.testing.assert_array_equal(np.asarray(found), mask)
print('meshes agree')
"""


def test_units_of_sharded_leaves() -> None:
    assert "meshes agree" in run_on_eight_devices(_MESH_PROGRAM)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_refuses_impossible_groups(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, m={m}"):
        pruning.n_m(n, m)


@pytest.mark.parametrize("shape", [(6, 8), (3, 3, 1, 16), (8,)])
def test_refuses_leaves_it_does_not_divide(shape: tuple[int, ...]) -> None:
    tx = pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.5), pattern=pruning.n_m(2, 4))
    with pytest.raises(ValueError, match=r"2:4 .*block/kernel has shape"):
        tx.init({"block": {"kernel": jnp.zeros(shape)}})
