"""N:M masks against a sort of every group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import pruning


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


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 4)])
def test_refuses_impossible_groups(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, m={m}"):
        pruning.n_m(n, m)


@pytest.mark.parametrize("shape", [(6, 8), (3, 3, 1, 16), (8,)])
def test_refuses_leaves_it_does_not_divide(shape: tuple[int, ...]) -> None:
    tx = pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.5), pattern=pruning.n_m(2, 4))
    with pytest.raises(ValueError, match=r"2:4 .*block/kernel has shape"):
        tx.init({"block": {"kernel": jnp.zeros(shape)}})
