"""Each primitive at fewer positions equals itself at all positions, restricted to those."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph.narrow import narrow
from compressjax.graph.trace import trace

KEEP = np.array([True, False, True, True, False, True, False, True])
H = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)

# Functions of [4, 8] whose last axis is cut, and the positions that are then left of the result.
SAME = {
    "unary": jnp.tanh,
    "activation": nn.relu,
    "literals": lambda h: 2.0 * h + 1.0,
    "position": lambda h: h * jnp.arange(8.0)[None],
    "constant": lambda h: h * jnp.asarray(np.linspace(1, 2, 8, dtype=np.float32))[None],
    "broadcast": lambda h: h + jnp.broadcast_to(h[:1], (4, 8)),
    "new axis": lambda h: (h[:, None, :] * jnp.ones((1, 3, 1))).sum(1),
    "transpose": lambda h: (h.T @ jnp.eye(4)).T,
    "sort": lambda h: jnp.sort(h, axis=0),
    "batch statistics": lambda h: (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True),
    "window": lambda h: jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (2, 1), (1, 1), "SAME"),
    "dynamic slice": lambda h: jax.lax.dynamic_slice(h, (0, 0), (4, 8)),
    "dynamic update": lambda h: jax.lax.dynamic_update_slice(h, -h[1:2], (2, 0)),
    "lookup": lambda h: h[jnp.array([3, 1, 0, 0])],
    "where": lambda h: jnp.where(h > 0, h, jnp.exp(h)),
    "random": lambda h: h * jax.random.normal(jax.random.key(0), (4, 8)),
    "reshape": lambda h: h.reshape(2, 2, 8).reshape(4, 8),
    "batched product": lambda h: (
        jnp.einsum("bc,bd->bcd", h, h[:, :0].sum(1, keepdims=True))[..., 0] + h
    ),
}
MOVED = {
    "reversed": (lambda h: h[:, ::-1], KEEP[::-1]),
    "every other": (lambda h: h[:, ::2], KEEP[::2]),
    "a piece": (lambda h: h[:, 3:7], KEEP[3:7]),
    "padded": (lambda h: jnp.pad(h, ((0, 0), (2, 1))), np.r_[True, True, KEEP, True]),
    "twice": (lambda h: jnp.concatenate([h, h], 1), np.r_[KEEP, KEEP]),
    "taken": (lambda h: jnp.take(h, np.array([7, 0, 1, 7]), 1), KEEP[[7, 0, 1, 7]]),
    "shuffled": (
        lambda h: h.reshape(4, 2, 4).swapaxes(1, 2).reshape(4, 8),
        KEEP.reshape(2, 4).T.reshape(-1),
    ),
    "repeated": (lambda h: jnp.repeat(h, 2, axis=1), np.repeat(KEEP, 2)),
    "tiled": (lambda h: jnp.tile(h, (1, 2)), np.r_[KEEP, KEEP]),
    "stacked": (lambda h: jnp.stack([h, 2 * h], 2).sum(2), KEEP),
    "unstacked": (lambda h: jnp.add(*jnp.unstack(h.reshape(2, 2, 8))), KEEP),
    "flattened": (lambda h: h.reshape(2, 16), np.r_[KEEP, KEEP]),
}


@pytest.mark.parametrize("name", [*SAME, *MOVED])
def test_result_is_the_whole_result_at_kept_positions(name):
    fn, keep = MOVED.get(name) or (SAME[name], KEEP)
    graph = trace(lambda v: fn(v["h"]), {"h": H}, keep_custom=False)
    run = narrow(graph, {"h": (np.ones(4, bool), KEEP)})
    found = jax.jit(run)({"h": H[:, KEEP]})
    expected = np.asarray(fn(jnp.asarray(H)))[:, keep]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_split_and_pieces_of_it():
    graph = trace(lambda v: jnp.split(v["h"], [3, 4], axis=1), {"h": H})
    parts = narrow(graph, {"h": (np.ones(4, bool), KEEP)})({"h": H[:, KEEP]})
    for part, columns in zip(parts, ([0, 2], [3], [5, 7]), strict=True):
        np.testing.assert_array_equal(part, H[:, columns])


def test_products_leave_cut_terms_out():
    w = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    graph = trace(lambda v: v["h"] @ v["w"], {"h": H, "w": w})
    run = narrow(graph, {"h": (np.ones(4, bool), KEEP), "w": (KEEP, np.ones(3, bool))})
    found = run({"h": H[:, KEEP], "w": w[KEEP]})
    np.testing.assert_allclose(found, (H * KEEP) @ w, rtol=1e-5, atol=1e-6)


def test_a_cut_that_the_graph_forbids():
    graph = trace(lambda v: nn.softmax(v["h"]), {"h": H}, keep_custom=False)
    with pytest.raises(
        ValueError, match=r"does not allow the cut of h\[1\]: .*reduce_max goes over"
    ):
        narrow(graph, {"h": (np.ones(4, bool), KEEP)})


def test_a_cut_that_is_not_the_same_everywhere():
    graph = trace(lambda v: v["h"] * v["g"], {"h": H, "g": H})
    whole = (np.ones(4, bool), np.ones(8, bool))
    with pytest.raises(ValueError, match=r"does not allow the cut of h\[1\]: g is kept there"):
        narrow(graph, {"h": (whole[0], KEEP), "g": whole})
