"""Affine chains: where they end, and that they evaluate to what the operations do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressjax.graph import affine_chain, affine_map, channel_vector, trace

VECTOR = np.array([0.5, -2.0, 3.0], "float32")
V = {"a": VECTOR, "b": np.ones((1, 3), "float32"), "rows": np.ones((2, 1), "float32")}
X = np.arange(6, dtype="float32").reshape(2, 3)


def chain_of(fn, axis=1, variables=V, x=X):
    graph = trace(fn, variables, x)
    return graph, affine_chain(graph, graph.inputs["input_0"], axis)


STEPS = {
    "add": lambda v, x: x + v["a"][None],
    "radd": lambda v, x: v["a"][None] + x,
    "sub": lambda v, x: x - v["a"][None],
    "rsub": lambda v, x: v["a"][None] - x,
    "mul": lambda v, x: x * v["a"][None],
    "div": lambda v, x: x / v["a"][None],
    "half": lambda v, x: x / 2.0,
    "ones": lambda v, x: x - v["b"],
    "computed": lambda v, x: x * jax.lax.rsqrt(v["a"] ** 2 + 1e-3)[None],
    "cast": lambda v, x: (x.astype(jnp.bfloat16) + 1).astype(jnp.float32),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
def test_the_map_is_what_the_operations_compute(steps):
    def fn(v, x):
        for step in steps:
            x = STEPS[step](v, x)
        return jnp.sin(x)

    graph, chain = chain_of(fn)
    assert graph.producers[graph.outputs[0]].inputs[0] is chain[-1][0].outputs[0]
    known = {graph.variables[path]: leaf for path, leaf in V.items()}
    scale, shift = affine_map(graph, chain, 1, known)
    exact = X
    for step in steps:
        exact = (exact + 1) if step == "cast" else STEPS[step](V, exact)
    np.testing.assert_allclose(
        X * np.asarray(scale) + np.asarray(shift), exact, rtol=2e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("fn", "length"),
    [
        (lambda v, x: jnp.sin(x) * v["a"][None], 0),
        (lambda v, x: jnp.sin(x * v["a"][None]) * 2.0, 1),
        (lambda v, x: (lambda y: y + y)(x * 2.0), 1),
        (lambda v, x: (lambda y: (y * 3.0, y))(x * 2.0), 1),
        (lambda v, x: (x * 2.0) * x, 0),
        (lambda v, x: (x * 2.0) * v["rows"], 1),
        (lambda v, x: v["a"][None] / (x + 1.0), 1),
        (lambda v, x: (x + 1.0)[None] * jnp.ones((4, 1, 1)), 1),
        (lambda v, x: (x + 1.0).astype(jnp.int32) * 2, 1),
        (lambda v, x: x * x.mean(0, keepdims=True), 0),
        (lambda v, x: x, 0),
    ],
    ids=[
        "starts_at_the_value", "nonlinear", "read_twice", "also_an_output", "two_readers",
        "other_axis", "denominator", "larger_shape", "int_cast", "own_statistics", "identity",
    ],
)  # fmt: skip
def test_a_chain_ends_where_it_is_no_longer_affine_per_channel(fn, length):
    _, chain = chain_of(fn)
    assert len(chain) == length


def test_the_channel_axis_decides():
    def fn(v, x):
        return x * v["rows"] + 1.0

    assert [op.kind for op, _ in chain_of(fn, axis=0)[1]] == ["mul", "add"]
    assert chain_of(fn, axis=1)[1] == ()


def test_channel_vector_looks_through_broadcasts():
    graph, chain = chain_of(lambda v, x: x * jnp.broadcast_to(v["a"], (2, 3)))
    ((_, operand),) = chain
    assert operand.shape == (2, 3)
    assert channel_vector(graph, operand, 1) is graph.variables["a"]
    assert channel_vector(graph, operand, 0) is None


def test_gradients_reach_the_variables():
    graph, chain = chain_of(lambda v, x: (x - v["a"][None]) * v["b"])

    def shift(a, b):
        known = {graph.variables["a"]: a, graph.variables["b"]: b}
        return affine_map(graph, chain, 1, known)[1].sum()

    a, b = jax.grad(shift, argnums=(0, 1))(jnp.asarray(VECTOR), jnp.ones((1, 3)))
    np.testing.assert_array_equal(a, -np.ones(3))
    np.testing.assert_array_equal(b, -VECTOR[None])
