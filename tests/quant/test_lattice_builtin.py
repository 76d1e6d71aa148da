"""Operators of other people's files against LiteRT, on all pairs of codes of random grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quant import lattice
from tests.quant.test_lattice import (
    ALL_CODES,
    FIRST,
    SECOND,
    assert_exact,
    draw_scale,
    draw_zero,
    floats,
    forms_of,
    grid,
)
from tests.support import tflite_ops as ops

PAIRS = {
    "PRELU": (lattice.prelu, None, 1),
    "SQUARED_DIFFERENCE": (lattice.squared_difference, "SquaredDifferenceOptions", 2),
    "DIV": (lattice.div, "DivOptions", 2),
}
ORDERS = {
    "EQUAL": (jnp.equal, "EqualOptions"),
    "LESS": (jnp.less, "LessOptions"),
    "GREATER_EQUAL": (jnp.greater_equal, "GreaterEqualOptions"),
}


def pair_case(operator, options, grids, first=FIRST, second=SECOND, version=1):
    tensors = [ops.Tensor(first.shape, scale=s, zero_point=z) for s, z in grids]
    table = None if options is None else ops.options(options)
    model = ops.build(operator, tensors[:2], tensors[2], table, version=version)
    assert not ops.delegated(model), "else these are not the builtin kernel's values"
    return ops.run(model, first, second)


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_litert(operator, seed):
    rng = np.random.default_rng(seed)
    function, options, version = PAIRS[operator]
    grids = [(draw_scale(rng), draw_zero(rng)) for _ in range(3)]
    second = SECOND
    if operator == "DIV":  # LiteRT fails on zeros
        second = np.where(SECOND == grids[1][1], SECOND ^ 1, SECOND).astype(np.int8)
    expected = pair_case(operator, options, grids, FIRST, second, version)
    assert len(np.unique(expected)) > 2
    grids = [grid(*each) for each in grids]
    assert_exact(function, expected, floats(FIRST), floats(second), *grids, forms=forms_of(seed))


@pytest.mark.parametrize("seed", range(8))
def test_absolute_values_equal_litert(seed):
    rng = np.random.default_rng(seed)
    x_grid, out_grid = ((draw_scale(rng), draw_zero(rng)) for _ in range(2))
    out_grid = x_grid if seed == 7 else out_grid
    tensors = [ops.Tensor(ALL_CODES.shape, scale=s, zero_point=z) for s, z in (x_grid, out_grid)]
    model = ops.build("ABS", tensors[:1], tensors[1], ops.options("AbsOptions"), version=2)
    assert not ops.delegated(model)
    expected = ops.run(model, ALL_CODES)
    operands = floats(ALL_CODES), grid(*x_grid), grid(*out_grid)
    assert_exact(lattice.absolute, expected, *operands, forms=forms_of(seed))


@pytest.mark.parametrize("operator", ORDERS)
@pytest.mark.parametrize("scale", [None, 0.0011, 2.06])
def test_comparisons_equal_litert(operator, scale):
    """On one grid of a fine scale too, or a coarse one, where LiteRT does not tell codes apart."""
    rng, (function, options) = np.random.default_rng(5), ORDERS[operator]
    a = (draw_scale(rng), draw_zero(rng)) if scale is None else (np.float32(scale), 3)
    b = a if scale == 0.0011 else (draw_scale(rng), draw_zero(rng))
    tensors = [ops.Tensor(FIRST.shape, scale=s, zero_point=z) for s, z in (a, b)]
    out = ops.Tensor(FIRST.shape, np.bool_)
    expected = ops.run(ops.build(operator, tensors, out, ops.options(options), 2), FIRST, SECOND)
    found = function(
        lattice.comparable(floats(FIRST), grid(*a)), lattice.comparable(floats(SECOND), grid(*b))
    )
    np.testing.assert_array_equal(found, expected)
    if scale == 0.0011 and operator == "LESS":
        assert np.any(expected != (FIRST < SECOND))


@pytest.mark.parametrize("corners", ["origin", "centers", "ends"])
@pytest.mark.parametrize("sizes", [(7, 13), (3, 1), (16, 10)])
def test_bilinear_resizes_equal_litert(corners, sizes):
    x = np.random.default_rng(1).integers(-128, 128, (2, 5, 5, 3)).astype(np.int8)
    how = {"align_corners": corners == "ends", "half_pixel_centers": corners == "centers"}
    options = ops.options(
        "ResizeBilinearOptions",
        alignCorners=how["align_corners"],
        halfPixelCenters=how["half_pixel_centers"],
    )
    tensors = [ops.Tensor(shape, scale=0.5, zero_point=3) for shape in (x.shape, (2, *sizes, 3))]
    target = ops.constant(np.asarray(sizes, np.int32))
    model = ops.build("RESIZE_BILINEAR", [tensors[0], target], tensors[1], options, version=3)
    assert ops.delegated(model)

    def resize(x):
        return lattice.resize_bilinear(x, sizes, **how)

    assert_exact(resize, ops.run(model, x), floats(x), forms=("eager", "jit"))


def test_gradients_are_those_of_the_reals():
    half, one = grid(0.5, 0), grid(1.0, 0)
    slope = jax.grad(lambda a, b: lattice.div(a, b, half, half, one).sum(), (0, 1))
    a, b = slope(jnp.float32(40.0), jnp.float32(4.0))
    np.testing.assert_allclose([a, b], [1 / 4, -40 / 16], rtol=1e-6)
    slope = jax.grad(lambda x: lattice.squared_difference(x, jnp.zeros(()), half, half, one))
    np.testing.assert_allclose(slope(jnp.float32(6.0)), 2 * 6 / 4, rtol=1e-6)
    slope = jax.grad(lambda x, s: lattice.prelu(x, s, half, half, one), (0, 1))
    np.testing.assert_allclose(slope(jnp.float32(-8.0), jnp.float32(2.0)), [0.5, -2.0], rtol=1e-6)
    assert jax.grad(lambda x: lattice.absolute(x, half, one))(-8.0) == -0.5
    image = jnp.arange(4.0).reshape(1, 2, 2, 1)
    spread = jax.grad(lambda x: lattice.resize_bilinear(x, (4, 4)).sum())(image)
    assert float(spread.sum()) == 16
