"""Files with an open batch give what the rows give, or name the operation that holds the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer

X = np.asarray(jax.random.normal(jax.random.key(0), (5, 8, 8, 3)))
D = 8


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.cache
def _variables():
    keys = iter(jax.random.split(jax.random.key(1), 8))
    shapes = {
        "patch": (4, 4, 3, D), "q": (D, D), "k": (D, D), "v": (D, D), "out": (D, 5),
        "up": (2, 2, D, 4), "token": (1, 1, D),
    }  # fmt: skip
    return {name: 0.4 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}


def _attention(variables, x):
    """Patches, one layer of attention with two heads, mean."""
    h = _conv(x, variables["patch"], 4).reshape(x.shape[0], -1, D)
    q, k, v = (
        (h @ variables[name]).reshape(*h.shape[:2], 2, D // 2).transpose(0, 2, 1, 3)
        for name in "qkv"
    )
    weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2))
    h = h + (weights @ v).transpose(0, 2, 1, 3).reshape(h.shape)
    return h.mean(1) @ variables["out"]


def _upsampling(variables, x):
    """Down and up again by a resize, with a skip connection."""
    down = jax.nn.relu(_conv(x, variables["patch"], 2))
    up = jax.image.resize(down, (x.shape[0], 8, 8, D), "nearest")
    return jnp.concatenate([x, up], -1)


def _transposed(variables, x):
    down = _conv(x, variables["patch"], 2)
    return jax.lax.conv_transpose(
        down, variables["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _token(variables, x):
    """A learnt token beside the patches, as ViT has it."""
    h = _conv(x, variables["patch"], 4).reshape(x.shape[0], -1, D)
    token = jnp.broadcast_to(variables["token"], (x.shape[0], 1, D))
    return jnp.concatenate([token, h], 1).sum(1)


def _file(fn, *, int8: bool, batch: int) -> bytes:
    if not int8:
        return cj.export.tflite(fn, _variables(), X[:batch], via="litert")
    q = cj.quantize(fn)
    return cj.export.tflite(q, q.calibrate(_variables(), [X]), X[:batch], via="litert")


@pytest.mark.parametrize(
    ("fn", "int8", "batch"),
    [(_attention, True, 1), (_attention, False, 2), (_upsampling, True, 1)],
)
def test_any_number_of_rows_in_one_call(fn, int8, batch):
    file = _file(fn, int8=int8, batch=batch)
    opened = cj.export.dynamic_batch(file)
    assert cj.export.dynamic_batch(file) == opened
    for count in (1, 2, 5):
        expected, found = cj.export.run(file, X[:count]), cj.export.run(opened, X[:count])
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if int8 else 1e-5)


def test_images_and_classes_in_one_call():
    file = cj.export.with_top_k(
        cj.export.with_image_input(_file(_attention, int8=True, batch=1)), 2
    )
    images = np.random.default_rng(2).integers(0, 256, X.shape).astype(np.uint8)
    opened = cj.export.dynamic_batch(file)
    graph = flatbuffer.read(opened).subgraphs[0]
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    assert [list(t.shapeSignature) for t in ends] == [[-1, 8, 8, 3], [-1, 2], [-1, 2]]
    assert [list(t.shape) for t in ends] == [[1, 8, 8, 3], [1, 2], [1, 2]]
    for found, expected in zip(
        cj.export.run(opened, images), cj.export.run(file, images), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_operation_that_holds_the_batch_is_named():
    with pytest.raises(ValueError, match=r"TRANSPOSE_CONV \(.+\) holds the batch of 1"):
        cj.export.dynamic_batch(_file(_transposed, int8=False, batch=1))
    with pytest.raises(ValueError, match=r"holds the batch of 1: .*CONCATENATION"):
        cj.export.dynamic_batch(_file(_token, int8=False, batch=1))


def test_inputs_without_a_common_batch():
    file = cj.export.tflite(
        lambda v, a, b: a + b, {}, jnp.ones((2, 3)), jnp.ones((1, 3)), via="litert"
    )
    with pytest.raises(ValueError, match=r"\[\[2, 3\], \[1, 3\]\]: no common first axis"):
        cj.export.dynamic_batch(file)
    merged = cj.export.merge(dict.fromkeys("ab", _file(_attention, int8=False, batch=1)))
    with pytest.raises(ValueError, match="has 2 graphs, expected one"):
        cj.export.dynamic_batch(merged)
