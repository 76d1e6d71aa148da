"""Kernels are brought into one layout, whatever the function does with the variable, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax import graph as graphs

RNG = np.random.default_rng(0)


def conv(x, w, numbers, groups=1):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


FUNCTIONS = {
    "hwio": (lambda v, x: conv(x, v, ("NHWC", "HWIO", "NHWC")), (3, 2, 4, 6), (1, 5, 5, 4)),
    "oihw": (lambda v, x: conv(x, v, ("NCHW", "OIHW", "NCHW")), (6, 4, 3, 2), (1, 4, 5, 5)),
    "grouped": (lambda v, x: conv(x, v, ("NHWC", "HWIO", "NHWC"), 2), (3, 3, 2, 6), (1, 5, 5, 4)),
    "flipped": (
        lambda v, x: conv(x, v[::-1].swapaxes(2, 3), ("NHWC", "HWIO", "NHWC")),
        (3, 3, 6, 4),
        (1, 5, 5, 4),
    ),
    "dense": (lambda v, x: x @ v, (4, 6), (2, 4)),
    "transposed": (lambda v, x: x @ v.T, (6, 4), (2, 4)),
    "left": (lambda v, x: v @ x, (6, 4), (4, 2)),
    "cast": (lambda v, x: x @ v.reshape(4, 6).astype(x.dtype), (2, 2, 6), (2, 4)),
    "several_features": (lambda v, x: jnp.einsum("bhc,chk->bk", x, v), (2, 3, 6), (5, 3, 2)),
}


def read(fn, variable, x):
    graph = graphs.trace(fn, variable, x)
    (kernel,) = filter(None, (graphs.kernel_of(graph, op) for op in graph.ops))
    return kernel


@pytest.mark.parametrize("name", FUNCTIONS)
def test_put_undoes_take(name):
    fn, shape, x = FUNCTIONS[name]
    w = jnp.asarray(RNG.normal(size=shape), "float32")
    kernel = read(fn, w, jnp.zeros(x))
    np.testing.assert_array_equal(kernel.put(kernel.take(w)), w)
    assert kernel.width == 6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_weight_stands_where_its_channels_say(name):
    fn, shape, x = FUNCTIONS[name]
    w = jnp.zeros(shape)
    kernel = read(fn, w, jnp.zeros(x))
    x = RNG.normal(size=x).astype("float32")
    weights = np.zeros(kernel.take(w).shape, "float32")
    tap, i, g, o = (int(RNG.integers(size)) for size in weights.shape)
    weights[tap, i, g, o] = 1.0
    out = fn(kernel.put(jnp.asarray(weights)), x)
    out = np.moveaxis(np.asarray(out), kernel.axis, 0)
    assert np.flatnonzero(np.abs(out).reshape(len(out), -1).max(1)).tolist() == [
        g * weights.shape[3] + o
    ]
    # Only the input channel that the weight reads matters.
    features = np.moveaxis(x, kernel.features, range(len(kernel.features)))
    flat = features.reshape(weights.shape[1] * weights.shape[2], -1).copy()
    flat[g * weights.shape[1] + i] = 0.0
    cut = np.moveaxis(flat.reshape(features.shape), range(len(kernel.features)), kernel.features)
    assert not np.any(fn(kernel.put(jnp.asarray(weights)), cut))


NO_KERNEL = {
    "used_twice": lambda v, x: x @ v @ v,
    "returned": lambda v, x: (x @ v, v),
    "computed": lambda v, x: x @ (2.0 * v),
    "repeated": lambda v, x: x @ jnp.broadcast_to(v[:1], (3, 3)).T,
    "two_outputs": lambda v, x: jnp.einsum("bi,ijk->bjk", x, v.reshape(3, 3, 1)),
    "no_contraction": lambda v, x: x + v[:1],
}


@pytest.mark.parametrize("name", NO_KERNEL)
def test_what_is_no_kernel(name):
    graph = graphs.trace(NO_KERNEL[name], jnp.ones((3, 3)), jnp.ones((1, 3)))
    assert all(graphs.kernel_of(graph, op) is None for op in graph.ops)


def test_kernels_inside_jit():
    w = jnp.asarray(RNG.normal(size=(6, 4)), "float32")
    kernel = read(FUNCTIONS["transposed"][0], w, jnp.zeros((2, 4)))
    doubled = jax.jit(lambda w: kernel.put(2.0 * kernel.take(w)))(w)
    np.testing.assert_array_equal(doubled, 2.0 * w)
