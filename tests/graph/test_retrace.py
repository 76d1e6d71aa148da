"""A function is prepared once for each shape, and nothing of an outer trace is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph import Retrace, interpret, template


def counted(fn):
    calls = []
    retrace = Retrace(fn, lambda graph: calls.append(graph) or graph)

    def run(variables, *args):
        return interpret(retrace(variables, *args), variables, *args)

    return run, calls


def test_each_shape_and_dtype_is_prepared_once():
    run, calls = counted(lambda v, x: x @ v)
    w = jnp.ones((3, 2))
    for batch in (1, 4, 1, 4):
        np.testing.assert_array_equal(run(w, jnp.ones((batch, 3))), np.full((batch, 2), 3.0))
    assert len(calls) == 2
    run(w, jnp.ones((1, 3), jnp.bfloat16))
    run(w.astype(jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16))
    assert len(calls) == 4


def test_the_structure_of_the_arguments_is_part_of_the_key():
    run, calls = counted(lambda v, x: sum(jax.tree.leaves(x)))
    one = jnp.ones(2)
    run({}, {"a": one, "b": one})
    run({}, {"a": one, "c": one})
    run({}, [one, one])
    assert len(calls) == 3


def test_matmul_precision_is_part_of_the_key():
    run, calls = counted(lambda v, x: x @ v)
    run(jnp.ones((3, 2)), jnp.ones((1, 3)))
    with jax.default_matmul_precision("float32"):
        run(jnp.ones((3, 2)), jnp.ones((1, 3)))
    precisions = [str(graph.ops[0].params["precision"]) for graph in calls]
    assert len(calls) == 2 and precisions[0] != precisions[1]


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: jax.vmap(f)])
def test_calls_under_a_transform_share_the_trace_of_a_plain_call(transform):
    run, calls = counted(lambda v, x: jnp.sin(x * v).sum())
    x = jnp.arange(3.0)
    run(2.0 * jnp.ones(()), x)
    before = len(calls)
    v = jnp.full((3,) if transform not in (jax.jit, jax.grad) else (), 2.0)
    function = transform(lambda v: run(v, x))
    function(v)
    function(v)
    assert len(calls) == before


def test_jit_outside_a_function_that_jits_inside():
    run, calls = counted(lambda v, x: jax.jit(lambda y: y * v)(x))
    w, x = jnp.float32(3.0), jnp.ones(2)
    np.testing.assert_array_equal(jax.jit(run)(w, x), run(w, x))
    assert len(calls) == 1


@pytest.mark.parametrize("outer", [jax.jit, jax.grad, lambda f: lambda s: jax.vmap(f)(s[None])])
def test_a_closed_over_tracer_is_used_but_not_remembered(outer):
    made = []

    def loss(scale):
        retrace = Retrace(lambda v, x: jax.jit(lambda y: y * scale + v)(x), lambda graph: graph)
        ones = jnp.ones(2)
        for _ in range(2):
            y = interpret(retrace(ones, ones), ones, ones)
        made.append(retrace._made)
        return y.sum()

    found = np.ravel(outer(loss)(jnp.float32(2.0)))
    np.testing.assert_array_equal(found, [2.0 if outer is jax.grad else 6.0])
    assert made == [{}]


def test_a_closed_over_array_is_remembered():
    scale = jnp.float32(2.0)
    run, calls = counted(lambda v, x: x * scale * v)
    for _ in range(2):
        jax.jit(run)(jnp.ones(2), jnp.ones(2))
    run(jnp.ones(2), jnp.ones(2))
    assert len(calls) == 1


def test_template_keeps_shapes_and_dtypes():
    found = template({"a": jnp.zeros((2, 3), jnp.bfloat16), "b": 1.0, "c": np.zeros(2, "int8")})
    assert [(x.shape, str(x.dtype)) for x in found.values()] == [
        ((2, 3), "bfloat16"),
        ((), "float32"),
        ((2,), "int8"),
    ]
    assert template(found) == found


def test_shapes_alone_are_enough():
    _, calls = counted(lambda v, x: x @ v)
    retrace = Retrace(lambda v, x: x @ v, lambda graph: graph.macs)
    assert retrace(template(jnp.ones((3, 2))), template(jnp.ones((5, 3)))) == 30
    assert not calls
