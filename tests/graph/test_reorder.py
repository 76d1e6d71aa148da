"""Reorderings are read as what they are, and nothing else is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph.interpret import interpret
from compressjax.graph.reorder import reorder, take_positions
from compressjax.graph.trace import trace

X = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)

READ = {
    "shuffle": lambda x: x.reshape(2, 3, 3, 4).swapaxes(2, 3).reshape(2, 3, 12),
    "shuffle of three factors": lambda x: (
        x.reshape(2, 3, 2, 3, 2).transpose(0, 1, 4, 2, 3).reshape(2, 3, 12)
    ),
    "shuffle of the first axis": lambda x: x.T.reshape(3, 4, 3, 2).swapaxes(0, 1).reshape(12, 3, 2),
    "take": lambda x: jnp.take(x, np.array([3, 3, 0]), axis=2),
    "indexing": lambda x: x[:, np.array([2, 0])],
    "gather": lambda x: take_positions(x, np.array([1]), 0),
}
LEFT = {
    "a reshape to another shape": lambda x: x.reshape(2, 3, 3, 4).swapaxes(2, 3).reshape(6, 12),
    "a transpose across axes": lambda x: x.reshape(2, 3, 3, 4).swapaxes(1, 2).reshape(2, 3, 12),
    "indices from data": lambda x: jnp.take(x, x[0, 0, :2].astype(int), axis=2),
    "a middle that is read": lambda x: (
        (y := x.reshape(2, 3, 3, 4).swapaxes(2, 3)).reshape(2, 3, 12) + y.sum()
    ),
    "two axes picked at once": lambda x: x[np.array([0, 1]), np.array([2, 0])],
}


@pytest.mark.parametrize("name", READ)
def test_is_one_take(name):
    fn = lambda v, x: READ[name](x)  # noqa: E731
    graph = reorder(trace(fn, {}, X))
    (op,) = (op for op in graph.ops if not graph.is_static(op.outputs[0]) and op.kind == "take")
    np.testing.assert_allclose(interpret(graph, {}, X), fn({}, X), rtol=1e-6)
    (x,) = (np.asarray(X) if op.inputs[0] is graph.inputs["input_0"] else X.T,)
    expected = np.take(x, op.params["positions"], axis=op.params["axis"])
    np.testing.assert_array_equal(fn({}, X), expected)
    jax.make_jaxpr(jax.grad(lambda x: interpret(graph, {}, x).sum()))(X)


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_stays(name):
    fn = lambda v, x: LEFT[name](x)  # noqa: E731
    graph = reorder(trace(fn, {}, X))
    assert "take" not in [op.kind for op in graph.ops]
    np.testing.assert_allclose(interpret(graph, {}, X), fn({}, X), rtol=1e-6)
