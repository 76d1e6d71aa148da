"""Transposed convolutions, extremes and nearest neighbours: the lattice against LiteRT itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.placement.transposed import spread
from tests.quant.test_lattice import (
    ACTIVATIONS,
    F32,
    assert_exact,
    draw_codes,
    draw_scale,
    draw_weights,
    draw_zero,
    floats,
    grid,
)
from tests.support import tflite_ops as ops

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    "plain": dict(shape=(2, 5, 6, 4), kernel=(3, 3), features=5, strides=(2, 2)),
    "same": dict(shape=(1, 6, 5, 3), kernel=(4, 3), features=6, strides=(2, 2), padding="SAME"),
    "one stride": dict(
        shape=(2, 6, 5, 3), kernel=(3, 2), features=4, strides=(2, 1), padding="SAME"
    ),
    "kernel of a stride": dict(
        shape=(1, 4, 4, 7), kernel=(2, 2), features=3, strides=(2, 2), activation="relu6"
    ),
    "long": dict(
        shape=(1, 3, 3, 130), kernel=(3, 3), features=3, strides=(1, 1), activation="relu"
    ),
}


def transposed_case(seed, shape, kernel, features, strides, padding="VALID", activation="none"):
    """Draws a transposed conv, and returns LiteRT's answer with what gives it on the lattice."""
    rng = np.random.default_rng(seed)
    x, w = draw_codes(rng, *shape), draw_weights(rng, features, *kernel, shape[3])
    x_zero, zero = draw_zero(rng), int(rng.integers(-40, 41))
    w_scale = np.array([draw_scale(rng, -8, -6) for _ in range(features)], F32)
    fan_in = shape[3] * np.prod(kernel) / np.prod(strides)
    x_scale = draw_scale(rng, -6, -3)
    out_scale = F32(x_scale * w_scale.mean() * 74 * 120 * np.sqrt(fan_in) / 60)
    b = rng.integers(-9000, 9000, features).astype(np.int32)
    sizes = zip(shape[1:3], kernel, strides, strict=True)
    outer = [n * s if padding == "SAME" else (n - 1) * s + k for n, k, s in sizes]
    out_shape = (shape[0], *outer, features)
    model = ops.transpose_conv(
        ops.Tensor(shape, scale=x_scale, zero_point=x_zero),
        ops.constant(w, w_scale),
        ops.constant(b, x_scale * w_scale),
        ops.Tensor(out_shape, scale=out_scale, zero_point=zero),
        strides,
        padding,
        activation,
    )
    assert ops.delegated(model)

    def apply(x, w, b, x_q, w_scale, out_q):
        acc = lattice.conv_sum(
            x,
            w,
            b,
            x_q,
            window_strides=(1, 1),
            padding=lax_padding(kernel, strides, padding),
            lhs_dilation=strides,
            dimension_numbers=NHWC,
        )
        return lattice.rescale(acc, x_q, w_scale, out_q, 3, **ACTIVATIONS[activation])

    turned = floats(w[:, ::-1, ::-1].transpose(1, 2, 3, 0).copy())
    grids = (grid(x_scale, x_zero), jnp.asarray(w_scale), grid(out_scale, zero))
    return apply, ops.run(model, x), (floats(x), turned, floats(b), *grids)


def lax_padding(kernel, strides, padding):
    """What jax.lax.conv_transpose pads, written from its definition."""
    pads = []
    for k, s in zip(kernel, strides, strict=True):
        if padding == "SAME":
            total, before = k + s - 2, k - 1 if s > k - 1 else -(-(k + s - 2) // 2)
        else:
            total, before = k + s - 2 + max(k - s, 0), k - 1
        pads.append((before, total - before))
    return tuple(pads)


class TestTransposedConv:
    @pytest.mark.parametrize("name", CASES)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_litert(self, name, seed):
        apply, expected, arguments = transposed_case(seed, **CASES[name])
        assert len(np.unique(expected)) > 5
        forms = ("eager", "jit", "constants") if (name, seed) == ("same", 0) else ("jit",)
        assert_exact(apply, expected, *arguments, forms=forms)


class TestSpread:
    @pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("dilation", [1, 2])
    @pytest.mark.parametrize("padding", ["SAME", "VALID", (0, 0), (1, 0), (3, 2), (7, 8)])
    def test_is_the_same_convolution(self, kernel, stride, dilation, padding):
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(1, 6, 1, 2)).astype("f"), rng.normal(size=(kernel, 1, 2, 3))
        w = w.astype("f")
        reach = (kernel - 1) * dilation + 1
        if isinstance(padding, str):
            padding = lax_padding((reach,), (stride,), padding)[0]
        form = spread((6,), (kernel,), (stride,), (padding,), (dilation,))

        def convolve(w, padding, dilation):
            return lax.conv_general_dilated(
                x, w, (1, 1), (padding, (0, 0)), (stride, 1), (dilation, 1), NHWC
            )

        if (5 * stride + 1) + sum(padding) < reach:
            return  # nothing is left of the output
        expected = convolve(w, padding, dilation)
        grown = lax.pad(w, F32(0), [form.grown[0], *[(0, 0, 0)] * 3])
        found = convolve(grown, form.padding[0], 1)
        size = grown.shape[0]
        assert size >= stride
        if form.window is not None:
            found = found[:, slice(*form.window[0])]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        cut = size - 1 - form.padding[0][0]
        assert form.padding[0] == (size - 1, size - 1) or cut == (size - stride) // 2


@pytest.mark.parametrize("axes", [(1, 2), (3,), (0, 1)])
@pytest.mark.parametrize(("op", "extreme"), [("REDUCE_MAX", jnp.max), ("REDUCE_MIN", jnp.min)])
def test_extremes_equal_litert(op, extreme, axes):
    x = draw_codes(np.random.default_rng(0), 2, 5, 4, 3)
    expected = extreme(floats(x), axes)
    tensor = ops.Tensor(x.shape, scale=F32(0.3), zero_point=7)
    out = ops.Tensor(expected.shape, scale=F32(0.3), zero_point=7)
    model = ops.reduce(op, tensor, axes, out, keep=False)
    assert ops.delegated(model)
    np.testing.assert_array_equal(ops.run(model, x), expected)


@pytest.mark.parametrize("size", [(10, 18), (7, 5), (3, 2), (13, 6)])
def test_nearest_neighbours_equal_litert(size):
    x = draw_codes(np.random.default_rng(0), 2, 5, 6, 3)
    shape = (2, *size, 3)
    table = ops.options("ResizeNearestNeighborOptions", alignCorners=False, halfPixelCenters=True)
    sizes = ops.constant(np.asarray(size, np.int32))
    tensors = [ops.Tensor(s, scale=F32(0.3), zero_point=7) for s in (x.shape, shape)]
    model = ops.build("RESIZE_NEAREST_NEIGHBOR", [tensors[0], sizes], tensors[1], table, 3)
    expected = jax.image.resize(floats(x), shape, "nearest")
    np.testing.assert_array_equal(ops.run(model, x), expected)
