"""Constants that are tensors of the file, and moves that leave nothing: LiteRT's codes by both."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from tests.quant.test_topologies import IMAGE, TOKENS, linen


def _learned(name, *shape):
    return nn.Dense(shape[-1], use_bias=False, name=name)(jnp.eye(int(np.prod(shape[:-1]))))


def class_token(x):
    token = jnp.broadcast_to(_learned("token", 1, 8)[None], (x.shape[0], 1, 8))
    x = jnp.concatenate([token, x], axis=1) + _learned("places", 6, 8)[None]
    return nn.Dense(3)(x)[:, 0]


def kernels_of_rows(x):
    queries = jnp.broadcast_to(_learned("queries", 2, 8)[None], (x.shape[0], 2, 8))
    found = jnp.einsum("bqd,bkd->bqk", queries, nn.Dense(8)(x))
    floor = _learned("floor", 1, 5)[None]
    return nn.Dense(3)(jnp.maximum(found, floor))


def moved_by_nothing(x):
    x = jnp.roll(nn.Conv(4, (1, 1))(x), (0, -2), (1, 2))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    y = jnp.flip(x, (0, 1)[1:])
    spread = jnp.broadcast_to(x[:, :1, :1], x.shape)
    return nn.Conv(3, (3, 3))(jnp.stack([jnp.concatenate([x, spread], -1).sum(-1), y[..., 0]], -1))


NETWORKS = ((class_token, TOKENS), (kernels_of_rows, TOKENS), (moved_by_nothing, IMAGE))


@functools.cache
def calibrated(body, shape):
    fn, variables, shape = linen(body, shape)
    batch = np.random.default_rng(2).normal(size=(12, *shape[1:])).astype("f")
    q = cj.quantize(fn, cj.quant.int8())
    return q, q.calibrate(variables, [batch], observer=cj.quant.min_max()), batch


@pytest.mark.parametrize("via", ["litert", "jax2tf"])
@pytest.mark.parametrize(("body", "shape"), NETWORKS)
def test_litert_gives_the_same_codes(body, shape, via):
    q, qv, batch = calibrated(body, shape)
    parity = cj.export.verify(cj.export.tflite(q, qv, batch[:1], via=via), q, qv, batch)
    assert parity.max_lsb == 0 and parity.mismatch_fraction == 0, str(parity)


def test_constants_learn_and_widen_their_range():
    q, qv, batch = calibrated(class_token, TOKENS)
    gradient = jax.grad(lambda p: (q.apply({**qv, "params": p}, batch) ** 2).sum())(qv["params"])
    assert np.abs(gradient["token"]["kernel"]).min() > 0
    far = jax.tree.map(lambda x: x, qv)
    far["params"]["token"]["kernel"] = qv["params"]["token"]["kernel"] + 100.0
    _, moved = q.observe(far, batch)
    key = next(s for s in q.plan(qv, batch).steps if s.kind == "concatenate").name
    key = q.plan(qv, batch).ranges[key]
    ends = [_at(tree, key)["high"] for tree in (qv["quant"], moved["quant"])]
    assert ends[1] > ends[0] + 0.5


def _at(tree, path):
    return functools.reduce(lambda node, part: node[part], path.split("/"), tree)


def test_an_unread_range_is_no_part_of_a_plan():
    q = cj.quantize(lambda v, x: jnp.roll(x @ v["kernel"], 0, 1))
    plan = q.plan({"kernel": jnp.eye(4)}, jnp.ones((2, 4)))
    assert [step.kind for step in plan.steps] == ["dense"]
    assert set(plan.ranges) == {"input_0", "kernel"}


def recurrent(x):
    cell, state = nn.LSTMCell(4), (jnp.zeros((x.shape[0], 4)),) * 2
    _, y = cell(state, x[:, 0])
    return nn.Dense(3)(y)


@pytest.mark.parametrize("via", ["litert", "jax2tf"])
def test_a_first_state_of_zeros_gives_the_same_steps_at_every_batch(via):
    q, qv, batch = calibrated(recurrent, TOKENS)
    names = [{step.name for step in q.plan(qv, batch[:size]).steps} for size in (1, 12)]
    assert names[0] == names[1]
    parity = cj.export.verify(cj.export.tflite(q, qv, batch[:1], via=via), q, qv, batch)
    assert parity.max_lsb == 0 and parity.mismatch_fraction == 0, str(parity)
