"""Operations give way to functions of other variables; names, links and outputs stay right."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph import Part, interpret, splice, trace

X = np.array([[1.0, 2.0]], "f")
WHOLE = {"a": np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], "f"), "b": np.ones((3, 2), "f")}


def whole(v, x):
    return (x @ v["a"]) @ v["b"] + 1


def product(graph, x, names=("down", "up")):
    """A part of two thinner layers for the first operation."""
    down, up = names
    new = {down: np.array([[1.0], [0.0]], "f"), up: np.array([[1.0, 2.0, 3.0]], "f")}
    return new, Part(trace(lambda v, x: x @ v[down] @ v[up], new, X), (x,))


def test_values_names_and_variables_after_a_splice():
    graph = trace(whole, WHOLE, X)
    new, part = product(graph, graph.inputs["input_0"])
    spliced = splice(graph, {graph.ops[0]: part})
    assert [op.name for op in spliced.ops] == ["down", "up", "b", "add_0"]
    assert sorted(spliced.variables) == ["b", "down", "up"]
    found = interpret(spliced, {**new, "b": WHOLE["b"]}, X)
    thin = {"a": new["down"] @ new["up"], "b": WHOLE["b"]}
    np.testing.assert_allclose(found, whole(thin, X))
    assert set(spliced.links.values()) == {"b", "down", "up"}


def test_the_output_itself_is_replaced():
    graph = trace(lambda v, x: x @ v["a"], WHOLE, X)
    new, part = product(graph, graph.inputs["input_0"])
    found = interpret(splice(graph, {graph.ops[0]: part}), new, X)
    np.testing.assert_allclose(found, X @ new["down"] @ new["up"])


def test_two_parts_share_variables():
    graph = trace(lambda v, x: x @ v["w"] + (2 * x) @ v["w"], {"w": WHOLE["a"]}, X)
    dots = [op for op in graph.ops if op.kind == "dot_general"]
    made = {op: product(graph, op.inputs[0]) for op in dots}
    spliced = splice(graph, {op: part for op, (_, part) in made.items()})
    new = made[dots[0]][0]
    assert list(spliced.variables) == ["down", "up"]
    assert len({op.name for op in spliced.ops}) == len(spliced.ops)
    found = interpret(spliced, new, X)
    np.testing.assert_allclose(found, 3 * (X @ new["down"] @ new["up"]))


def test_a_path_that_is_taken():
    graph = trace(whole, WHOLE, X)
    _, part = product(graph, graph.inputs["input_0"], names=("b", "up"))
    with pytest.raises(ValueError, match="its part has a variable at 'b', which is taken"):
        splice(graph, {graph.ops[0]: part})


def test_constants_of_a_part_come_along():
    graph = trace(whole, WHOLE, X)
    table = jnp.asarray([[1.0, 2.0, 3.0]])
    part = Part(trace(lambda v, x: x @ v["a2"] + table, {"a2": WHOLE["a"]}, X),
                (graph.inputs["input_0"],))  # fmt: skip
    spliced = splice(graph, {graph.ops[0]: part})
    found = interpret(spliced, {"a2": WHOLE["a"], "b": WHOLE["b"]}, X)
    np.testing.assert_allclose(found, (X @ WHOLE["a"] + np.asarray(table)) @ WHOLE["b"] + 1)
