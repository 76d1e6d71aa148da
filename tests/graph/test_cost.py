"""MACs against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax import models
from compressjax.graph import trace


def macs(fn, *shapes):
    first, *rest = (jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)
    return trace(lambda v, x: fn(x, *v), rest, first).macs


def conv(groups=1, strides=1, dilation=1, padding="SAME", batch_groups=1, numbers=None):
    def fn(x, w):
        return lax.conv_general_dilated(
            x, w, (strides, strides), padding, rhs_dilation=(dilation, dilation),
            dimension_numbers=numbers or ("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups, batch_group_count=batch_groups,
        )  # fmt: skip

    return fn


def conv_by_hand(image, size, in_features, out_features, stride, dilation, padding):
    """Visits every output and every tap of every kernel."""
    reach = dilation * (size - 1) + 1
    side = -(-image // stride) if padding == "SAME" else (image - reach) // stride + 1
    return sum(
        in_features * out_features for _ in np.ndindex(side, side) for _ in np.ndindex(size, size)
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("groups", [1, 2, 6], ids=["plain", "grouped", "depthwise"])
def test_convolution(stride, dilation, padding, groups):
    fn = conv(groups, stride, dilation, padding)
    found = macs(fn, (3, 9, 9, 6), (3, 3, 6 // groups, 12))
    assert found == 3 * conv_by_hand(9, 3, 6 // groups, 12, stride, dilation, padding)


def test_convolution_counts_the_same_in_other_layouts():
    found = macs(conv(numbers=("NCHW", "OIHW", "NCHW")), (2, 3, 8, 8), (5, 3, 3, 3))
    assert found == macs(conv(), (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * 64 * 27 * 5


def test_batch_grouped_convolution():
    # Two groups of images, each convolved with half of the kernels.
    assert macs(conv(batch_groups=2), (4, 8, 8, 3), (3, 3, 3, 6)) == 2 * 64 * 6 * 27


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ik,kj->ij", [(2, 5), (5, 3)], 2 * 5 * 3),
        ("bik,bkj->bij", [(4, 2, 5), (4, 5, 3)], 4 * 2 * 5 * 3),
        ("bikl,klj->bij", [(4, 2, 5, 6), (5, 6, 3)], 4 * 2 * 30 * 3),
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 7, 4, 5)], 2 * 4 * 3 * 7 * 5),
        ("i,j->ij", [(3,), (4,)], 12),
    ],
)
def test_matrix_product(equation, shapes, expected):
    assert macs(lambda x, w: jnp.einsum(equation, x, w), *shapes) == expected


def test_scan_counts_its_body_once_for_each_step():
    def fn(x, w):
        return lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length=5)[0]

    assert macs(fn, (2, 3), (3, 3)) == 5 * 2 * 9


def test_scan_in_scan():
    def inner(c, w):
        return lax.scan(lambda c, _: (c @ w, None), c, None, length=2)[0]

    def outer(x, w):
        return lax.scan(lambda c, _: (inner(c, w), None), x, None, length=3)[0]

    assert macs(outer, (1, 4), (4, 4)) == 6 * 16


def test_cond_counts_its_largest_branch():
    def fn(x, w):
        return lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert macs(fn, (1, 4), (4, 4)) == 2 * 16


def test_calls_are_counted():
    def fn(x, w):
        return jax.checkpoint(jax.jit(lambda x: x @ w))(x) + jax.nn.relu(x @ w)

    assert macs(fn, (1, 4), (4, 4)) == 2 * 16


def test_elementwise_work_is_free():
    assert macs(lambda x: (jnp.sin(x) * x).sum() + x.max(), (5, 5)) == 0


def test_resnet8_has_the_macs_of_its_layers():
    model = models.ResNet8(10)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    graph = trace(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)
    stem = 1024 * 27 * 16
    first = 2 * 1024 * 144 * 16
    second = 256 * (144 * 32 + 288 * 32 + 16 * 32)
    third = 64 * (288 * 64 + 576 * 64 + 32 * 64)
    assert graph.macs == stem + first + second + third + 640
