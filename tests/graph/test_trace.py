"""A graph's operations, their names, the variables behind them, and what stays whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax import models
from compressjax.graph import Literal, interpret, substitute, trace


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def kinds(graph):
    return [op.kind for op in graph.ops]


def names(graph):
    return [op.name for op in graph.ops]


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        gate = nn.sigmoid(nn.Dense(4)(y.mean((1, 2))))
        return nn.Dense(2)((y * gate[:, None, None]).mean((1, 2)))


@pytest.mark.parametrize(
    "model",
    [_Block(), models.MLP(10), models.SmallCNN(10), models.ResNet8(10)],
    ids=lambda model: type(model).__name__,
)
def test_names_of_what_depends_on_an_input_do_not_change_with_the_batch_size(model):
    found = []
    for batch in (1, 2, 7):
        x = jax.ShapeDtypeStruct((batch, 8, 8, 3), "float32")
        graph = trace(model.apply, shapes(model, x), x)
        assert len(set(names(graph))) == len(graph.ops)
        found.append([(op.name, op.kind) for op in graph.ops if not graph.is_static(op.outputs[0])])
    assert found[0] == found[1] == found[2]


def test_contractions_are_named_by_their_kernels():
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    graph = trace(models.SmallCNN(10).apply, shapes(models.SmallCNN(10), x), x)
    contractions = [
        op.name for op in graph.ops if op.kind in ("conv_general_dilated", "dot_general")
    ]
    kernels = [f"params/Conv_{i}/kernel" for i in range(3)]
    assert contractions == [*kernels, "params/Dense_0/kernel"]


def test_names_stay_unique_where_a_variable_is_called_like_an_operation():
    variables = {"add_0": jnp.ones(3), "mul_0": jnp.ones(3)}
    graph = trace(lambda v, x: (x + x) * v["mul_0"] + v["add_0"] + x, variables, jnp.ones(3))
    assert len(set(names(graph))) == 4


def test_a_function_of_one_bare_array_has_readable_names():
    assert names(trace(lambda v, x: x @ v, jnp.ones((3, 2)), jnp.ones((1, 3)))) == ["dot_general_0"]


@pytest.mark.parametrize(
    "move",
    [
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: w.T,
        lambda w: w.reshape(2, 2, 4).reshape(4, 4),
        lambda w: jnp.flip(w, 0),
        lambda w: lax.stop_gradient(w),
        lambda w: jax.jit(jnp.transpose)(w[None]).squeeze(-1),
        lambda w: jax.checkpoint(jnp.transpose)(w),
    ],
)
def test_a_variable_is_followed_through_casts_and_moves(move):
    variables = {"params": {"w": jnp.ones((4, 4))}}
    graph = trace(lambda v, x: x @ move(v["params"]["w"]), variables, jnp.ones((2, 4)))
    dot = graph.ops[-1]
    assert (dot.name, dot.kind, dot.variables) == ("params/w", "dot_general", ("params/w",))
    assert graph.links[dot.inputs[1]] == "params/w"


def test_a_computed_kernel_is_no_longer_the_variable():
    variables = {"w": jnp.ones((4, 4))}
    graph = trace(lambda v, x: x @ (v["w"] * 2.0), variables, jnp.ones((2, 4)))
    scale, dot = graph.ops
    assert (scale.name, dot.name, dot.variables) == ("w", "dot_general_0", ())
    assert graph.is_static(scale.outputs[0]) and not graph.is_static(dot.outputs[0])


def test_a_kernel_used_twice_names_both_uses():
    variables = {"w": jnp.ones((4, 4))}
    graph = trace(lambda v, x: jnp.sin(x @ v["w"]) @ v["w"].T, variables, jnp.ones((2, 4)))
    dots = [op for op in graph.ops if op.kind == "dot_general"]
    assert [op.name for op in dots] == ["w", "w#1"]
    assert all(op.variables == ("w",) for op in dots)


def test_inputs_are_named_by_position_and_path():
    graph = trace(lambda v, x, y: x["a"] + x["b"][0] + y, {}, {"a": 1.0, "b": [2.0]}, 3.0)
    assert list(graph.inputs) == ["input_0/a", "input_0/b/0", "input_1"]


def test_nested_calls_are_one_flat_list():
    inner = jax.jit(lambda x: jax.checkpoint(lambda y: jnp.sin(y) * 2.0)(x) + 1.0)
    graph = trace(lambda v, x: jax.jit(inner)(x), {}, jnp.ones(3))
    assert kinds(graph) == ["sin", "mul", "add"]


def test_what_no_output_needs_is_left_out():
    graph = trace(
        lambda v, x: (jnp.cos(x @ v["w"]), x)[1] * 2.0, {"w": jnp.ones((3, 3))}, jnp.ones(3)
    )
    assert kinds(graph) == ["mul"]
    assert list(graph.variables) == ["w"] and graph.consumers.get(graph.variables["w"]) is None


@jax.custom_jvp
def tripled(x):
    return jnp.sin(x) * 2.0


tripled.defjvp(lambda primals, tangents: (tripled(*primals), 3.0 * tangents[0]))


@jax.custom_vjp
def scaled(x, w):
    return x * w


scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (5.0 * g * r[1], 7.0 * g * r[0]))


@jax.custom_jvp
def both(x):
    return jnp.sin(x), jnp.cos(x)


both.defjvp(lambda p, t: (both(*p), (2.0 * t[0], 3.0 * t[0])))


@jax.custom_jvp
def power(x, exponent):
    return x**exponent


power.defjvp(lambda p, t: (power(*p), 13.0 * t[0]))

VARIABLES = {"w": jnp.array([0.5, -1.0, 2.0])}
X = jnp.array([0.1, 0.7, -0.4])


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("tripled", lambda v, x: tripled(x * v["w"])),
        ("scaled", lambda v, x: scaled(jnp.sin(x), v["w"])),
        ("power", lambda v, x: power(x * v["w"], 3.0)),
        ("both", lambda v, x: both(x * v["w"])[1]),
        ("relu6", lambda v, x: jax.nn.relu6(x * v["w"])),
    ],
)
def test_a_derivative_rule_is_kept_or_opened(name, fn):
    def gradients(function):
        return jax.grad(lambda v, x: function(v, x).sum(), argnums=(0, 1))(VARIABLES, X)

    kept = trace(fn, VARIABLES, X)
    opened = trace(fn, VARIABLES, X, keep_custom=False)
    assert name in kinds(kept) and not kept.notes
    assert (name in kinds(opened)) == (name == "relu6")
    for graph in (kept, opened):
        np.testing.assert_array_equal(interpret(graph, VARIABLES, X), fn(VARIABLES, X))
    found = gradients(lambda v, x: interpret(kept, v, x))
    jax.tree.map(np.testing.assert_array_equal, found, gradients(fn))


def test_an_activation_of_jax_nn_is_recognised_at_any_shape():
    graph = trace(lambda v, x: jax.nn.relu(x), {}, X)
    (op,) = graph.ops
    (y,) = op.bind(op.params, jnp.array([[-1.0, 2.0]]))
    np.testing.assert_array_equal(y, [[0.0, 2.0]])


@pytest.mark.parametrize("name", ["relu", "glu"])
def test_a_function_with_the_name_of_an_activation_is_not_taken_for_it(name):
    def body(x):
        return x * 2.0

    body.__name__ = name
    function = jax.custom_jvp(body)
    function.defjvp(lambda p, t: (function(*p), 11.0 * t[0]))
    graph = trace(lambda v, x: function(x), {}, X)
    np.testing.assert_array_equal(interpret(graph, {}, X), X * 2.0)
    gradient = jax.grad(lambda x: interpret(graph, {}, x).sum())(X)
    np.testing.assert_array_equal(gradient, np.full(3, 11.0))


def test_a_derivative_rule_around_a_contraction_is_opened_and_said_so():
    @jax.custom_jvp
    def layer(x, w):
        return x @ w

    layer.defjvp(lambda p, t: (layer(*p), layer(t[0], p[1])))
    graph = trace(lambda v, x: layer(x, v["w"]), {"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
    assert [(op.name, op.kind) for op in graph.ops] == [("w", "dot_general")]
    (note,) = graph.notes
    assert "layer" in note and "opened" in note
    assert note in graph.summary()


@pytest.mark.parametrize(
    ("kind", "fn"),
    [
        ("while", lambda v, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c * v["w"], x)),
        ("cond", lambda v, x: lax.cond(x.sum() > 0, lambda c: c * v["w"], jnp.negative, x)),
    ],
)
def test_control_flow_is_left_whole_and_said_so(kind, fn):
    variables = {"w": jnp.full(3, 3.0)}
    graph = trace(fn, variables, X)
    assert kind in kinds(graph)
    assert graph.notes == (f"{kind} is left whole: transforms do not look inside it",)
    np.testing.assert_array_equal(interpret(graph, variables, X), fn(variables, X))


def test_a_cast_of_a_number_is_a_number():
    graph = trace(lambda v, x: jnp.clip(x, -1, 1), {}, jnp.ones(3, jnp.bfloat16))
    assert kinds(graph) == ["max", "min"]
    numbers = [value for op in graph.ops for value in op.inputs if isinstance(value, Literal)]
    assert [(float(n.value), n.dtype) for n in numbers] == [(-1.0, "bfloat16"), (1.0, "bfloat16")]


def test_closed_over_arrays_are_constants():
    table = np.arange(6.0, dtype="float32").reshape(3, 2)
    graph = trace(lambda v, x: x @ jnp.asarray(table), {}, jnp.ones((1, 3)))
    (dot,) = [op for op in graph.ops if op.kind == "dot_general"]
    assert graph.is_static(dot.inputs[1])
    np.testing.assert_array_equal(interpret(graph, {}, jnp.ones((1, 3))), [[6.0, 9.0]])


def test_outputs_keep_their_structure():
    def fn(v, x):
        return {"same": x, "three": 3.0, "none": None, "variable": v["w"], "sum": [x + 1.0]}

    found = interpret(trace(fn, VARIABLES, X), VARIABLES, X)
    jax.tree.map(np.testing.assert_array_equal, found, fn(VARIABLES, X))
    assert jax.tree.structure(found) == jax.tree.structure(fn(VARIABLES, X))


def test_shapes_are_enough_to_trace():
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    model = models.ResNet8(10)
    graph = trace(model.apply, shapes(model, x), x)
    assert graph.num_params == 77946
    assert graph.summary().endswith(f"total: {graph.macs:,} MACs, 77,946 parameters")


def test_num_params_counts_everything_where_there_is_no_params_collection():
    assert trace(lambda v, x: x, {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}, X).num_params == 10


def test_variables_that_do_not_fit_are_named_in_a_note():
    with pytest.raises(TypeError) as caught:
        trace(lambda v, x: x @ v["params"]["w"], {"params": {"w": jnp.ones((4, 2))}}, X)
    assert any("params/w" in note and "fit" in note for note in caught.value.__notes__)


def test_substitute_follows_chains_and_drops_what_nothing_reads():
    graph = trace(lambda v, x: ((x + 1.0) * v["w"] - 2.0) * 3.0, VARIABLES, X)
    add, mul, sub, last = graph.ops
    skipped = substitute(graph, {sub.outputs[0]: mul.outputs[0], mul.outputs[0]: add.outputs[0]})
    assert names(skipped) == [add.name, last.name]
    np.testing.assert_array_equal(interpret(skipped, {}, X), (X + 1.0) * 3.0)
    assert kinds(substitute(graph, {last.outputs[0]: graph.inputs["input_0"]})) == []


def test_an_operation_knows_the_line_that_it_comes_from():
    def fn(v, x):
        return nn.LayerNorm().apply(v, jnp.sin(x))  # what a library does counts as this line

    variables = {"params": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}
    ops = trace(fn, variables, jnp.ones((2, 3))).ops
    assert all("test_trace.py" in op.source and "fn" in op.source for op in ops)
    assert len({op.source for op in ops}) == 2


def test_the_line_of_a_cached_call_is_not_that_of_its_first_caller():
    jnp.sort(jnp.ones(5))
    first = trace(lambda v, x: jnp.sort(x), {}, jnp.ones(5)).ops[0].source
    second = trace(lambda v, x: jnp.sort(x), {}, jnp.ones(5)).ops[0].source
    assert first != second
