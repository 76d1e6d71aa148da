"""Hooks see every operation, parts of a graph run alone, and what is missing is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph import bind_arguments, evaluate, interpret, trace

V = {"params": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]]), "b": jnp.array([0.1, -0.2])}}
X = jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])


def network(v, x):
    return jax.nn.relu(x @ v["params"]["w"] + v["params"]["b"][None]).sum(1)


GRAPH = trace(network, V, X)
DOT, BIAS, RELU, SUM = (op for op in GRAPH.ops if not GRAPH.is_static(op.outputs[0]))


def test_hooks_see_the_operations_in_order():
    seen = []

    def before(op, inputs):
        seen.append(("before", op.name))
        return inputs

    def after(op, outputs):
        seen.append(("after", op.name))
        return outputs

    assert (interpret(GRAPH, V, X, before=before, after=after) == network(V, X)).all()
    assert seen == [(when, op.name) for op in GRAPH.ops for when in ("before", "after")]


def test_before_changes_the_inputs_of_an_operation():
    def before(op, inputs):
        return (inputs[0], jnp.abs(inputs[1])) if op is DOT else inputs

    absolute = {"params": {**V["params"], "w": jnp.abs(V["params"]["w"])}}
    np.testing.assert_array_equal(interpret(GRAPH, V, X, before=before), network(absolute, X))


def test_a_rule_stands_in_for_an_operation_and_none_leaves_it():
    def rule(op, inputs):
        return [jnp.tanh(inputs[0])] if op.kind == "relu" else None

    expected = jnp.tanh(X @ V["params"]["w"] + V["params"]["b"][None]).sum(1)
    np.testing.assert_array_equal(interpret(GRAPH, V, X, rule=rule), expected)


def test_after_changes_the_outputs_also_of_a_rule():
    found = interpret(
        GRAPH,
        V,
        X,
        rule=lambda op, inputs: [inputs[0]] if op is RELU else None,
        after=lambda op, outputs: [outputs[0] + 1.0] if op is RELU else outputs,
    )
    expected = (X @ V["params"]["w"] + V["params"]["b"][None] + 1.0).sum(1)
    np.testing.assert_array_equal(found, expected)


def test_hooks_may_use_other_objects_than_arrays():
    widths = interpret(
        GRAPH, V, X, rule=lambda op, inputs: [(op.kind, *op.out_shape)] * len(op.outputs)
    )
    assert widths == ("reduce_sum", 2)


def test_a_rule_with_the_wrong_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="zip"):
        interpret(GRAPH, V, X, rule=lambda op, inputs: [1, 2])


def test_only_what_is_needed_runs():
    ran = []
    known = {DOT.outputs[0]: jnp.ones((2, 2)), GRAPH.variables["params/b"]: jnp.ones(2)}
    (found,) = evaluate(
        GRAPH, [BIAS.outputs[0]], known, before=lambda op, inputs: ran.append(op) or inputs
    )
    np.testing.assert_array_equal(found, np.full((2, 2), 2.0))
    assert DOT not in ran and RELU not in ran and BIAS in ran


def test_a_known_value_overrides_what_computes_it():
    known = {**bind_arguments(GRAPH, V, X), RELU.outputs[0]: jnp.full((2, 2), 5.0)}
    (found,) = evaluate(GRAPH, GRAPH.outputs, known)
    np.testing.assert_array_equal(found, [10.0, 10.0])


def test_inputs_variables_and_inner_values_can_be_asked_for_together():
    known = bind_arguments(GRAPH, V, X)
    wanted = [GRAPH.inputs["input_0"], GRAPH.variables["params/b"], DOT.outputs[0]]
    x, b, y = evaluate(GRAPH, wanted, known)
    assert x is X and b is V["params"]["b"]
    np.testing.assert_array_equal(y, X @ V["params"]["w"])


def test_missing_variables_are_named():
    with pytest.raises(ValueError, match=r"do not fit.*missing params/b, params/w"):
        interpret(GRAPH, {"params": {}}, X)


def test_a_missing_input_is_named():
    known = {
        GRAPH.variables[path]: leaf
        for path, leaf in zip(["params/b", "params/w"], jax.tree.leaves(V), strict=True)
    }
    with pytest.raises(ValueError, match="missing input_0"):
        evaluate(GRAPH, GRAPH.outputs, known)


def test_variables_that_the_graph_does_not_use_may_be_missing_or_extra():
    graph = trace(lambda v, x: x * v["used"], {"used": 2.0, "unused": 3.0}, 1.0)
    assert float(interpret(graph, {"used": 2.0, "other": 4.0}, 3.0)) == 6.0


def test_another_number_of_inputs_is_refused():
    with pytest.raises(ValueError, match=r"traced with 1 inputs \(input_0\), called with 2"):
        interpret(GRAPH, V, X, X)


def test_hooks_work_under_jit_grad_and_vmap():
    def doubled(v, x):
        return interpret(
            GRAPH, v, x, after=lambda op, out: [2.0 * out[0]] if op is DOT else out
        ).sum()

    def expected(v, x):
        y = 2.0 * (x @ v["params"]["w"])
        return jax.nn.relu(y + v["params"]["b"][None]).sum()

    for function in (jax.jit, jax.grad, lambda f: jax.vmap(f, (None, 0))):
        x = jnp.stack([X, -X]) if function not in (jax.jit, jax.grad) else X
        jax.tree.map(
            lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-6),
            function(doubled)(V, x),
            function(expected)(V, x),
        )
