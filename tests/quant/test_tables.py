"""The lattice's tabulated functions against LiteRT, on all 256 codes of many random grids."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quant import lattice
from tests.quant.test_lattice import (
    ALL_CODES,
    F32,
    FIRST,
    SECOND,
    assert_exact,
    draw_scale,
    draw_zero,
    floats,
    grid,
)
from tests.support import tflite_ops as ops


def tanh_gelu(x, x_q, out_q):
    return lattice.gelu(x, x_q, out_q, approximate=True)


def erf_gelu(x, x_q, out_q):
    return lattice.gelu(x, x_q, out_q, approximate=False)


# Operator, options, what the lattice computes, and log2 of the largest input scale.
TABLES = {
    "exp": ("EXP", ops.options("ExpOptions"), lattice.exp, -3),
    "log": ("LOG", None, lattice.log, 0),
    "gelu": ("GELU", ops.options("GeluOptions", approximate=False), erf_gelu, 0),
    "gelu tanh": ("GELU", ops.options("GeluOptions", approximate=True), tanh_gelu, 0),
    "elu": ("ELU", None, lattice.elu, 0),
    "sqrt": ("SQRT", None, lattice.sqrt, 0),
    "rsqrt": ("RSQRT", None, lattice.rsqrt, 0),
}
POSITIVE = ("sqrt", "rsqrt")


def case(operator, options, x, x_grid, out_grid):
    tensors = [ops.Tensor(x.shape, scale=s, zero_point=z) for s, z in (x_grid, out_grid)]
    model = ops.build(operator, tensors[:1], tensors[1], options)
    return ops.run(model, x), ops.delegated(model)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("seed", range(2))
def test_equals_litert_on_all_codes(name, seed):
    rng = np.random.default_rng(seed)
    operator, options, function, top = TABLES[name]
    jitted = jax.jit(function)
    for _ in range(25):
        x_grid = draw_scale(rng, -8, top), draw_zero(rng)
        out_grid = draw_scale(rng, -8, 0), draw_zero(rng)
        x = np.maximum(ALL_CODES, x_grid[1]).astype(np.int8) if name in POSITIVE else ALL_CODES
        expected, delegated = case(operator, options, x, x_grid, out_grid)
        assert delegated == (name == "elu")
        found = jitted(floats(x), grid(*x_grid), grid(*out_grid))
        np.testing.assert_array_equal(found, expected, err_msg=f"{x_grid} {out_grid}")
    assert_exact(function, expected, floats(x), grid(*x_grid), grid(*out_grid))


@pytest.mark.parametrize("slope", [0.1, 0.01, 0.0, -1.0, 1.5])
def test_leaky_relu_equals_both_of_litert_s_kernels(slope):
    rng = np.random.default_rng(0)
    jitted = jax.jit(lambda *operands: lattice.leaky_relu(*operands, slope))
    kernels = set()
    for _ in range(30):
        x_grid = draw_scale(rng, -5, 0), draw_zero(rng)
        out_grid = draw_scale(rng, -5, 0), draw_zero(rng)
        options = ops.options("LeakyReluOptions", alpha=slope)
        expected, delegated = case("LEAKY_RELU", options, ALL_CODES, x_grid, out_grid)
        kernels.add(delegated)
        found = jitted(floats(ALL_CODES), grid(*x_grid), grid(*out_grid))
        np.testing.assert_array_equal(found, expected, err_msg=f"{x_grid} {out_grid}")
    assert kernels == {0.01: {True, False}, 0.0: {False}}.get(slope, {True})


@pytest.mark.parametrize("name", ["MAXIMUM", "MINIMUM"])
def test_extremes_equal_litert_on_all_code_pairs(name):
    function = {"MAXIMUM": lattice.maximum, "MINIMUM": lattice.minimum}[name]
    tensor = ops.Tensor(FIRST.shape, scale=0.031, zero_point=-7)
    model = ops.build(name, [tensor, tensor], tensor, ops.options("MaximumMinimumOptions"))
    expected = ops.run(model, FIRST, SECOND)
    assert_exact(function, expected, floats(FIRST), floats(SECOND))


@pytest.mark.parametrize(
    ("coded", "real"),
    [
        (lattice.exp, jnp.exp),
        (tanh_gelu, nn.gelu),
        (erf_gelu, lambda x: nn.gelu(x, approximate=False)),
        (lattice.elu, nn.elu),
        (lambda *operands: lattice.leaky_relu(*operands, 0.1), lambda x: nn.leaky_relu(x, 0.1)),
        (lattice.log, jnp.log),
        (lattice.sqrt, jnp.sqrt),
        (lattice.rsqrt, jax.lax.rsqrt),
    ],
)
def test_gradients_are_those_of_the_functions(coded, real):
    q, out = grid(0.05, 3), grid(0.1, -5)
    x = jnp.array([-40.0, -10.0, 2.9, 3.5, 9.0, 50.0])
    values = (x - 3) * F32(0.05)
    slopes = jax.vmap(jax.grad(real))(values) * 0.5
    inside = jnp.abs(real(values) / 0.1 - 5) < 127.5
    found = jax.jit(jax.vmap(jax.grad(lambda x: coded(x, q, out))))(x)
    np.testing.assert_allclose(found, np.where(inside, slopes, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [lattice.log, lattice.sqrt, lattice.rsqrt])
def test_what_is_not_positive_has_no_gradient_and_no_nan(function):
    slope = jax.grad(lambda x: function(x, grid(0.1, 0), grid(0.1, 0)).sum())
    np.testing.assert_array_equal(slope(jnp.array([0.0, -5.0])), [0.0, 0.0])


def test_ranges_move_under_jit_without_a_new_trace():
    traces = []

    @jax.jit
    def run(scale):
        traces.append(scale)
        return lattice.gelu(jnp.float32(100), grid(scale, 0), grid(0.05, 0), approximate=False)

    assert [float(run(scale)) for scale in (0.01, 0.02, 0.05)] == [17.0, 39.0, 100.0]
    assert len(traces) == 1
