"""16-bit activations against LiteRT's builtin kernels, with equality and no tolerance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import total, wide, wide_functions, wide_reductions
from tests.quant.test_lattice import ACTIVATIONS, F32, assert_exact, floats, grid
from tests.support import tflite_ops as ops

NHWC = ("NHWC", "OHWI", "NHWC")
ENDS = np.array([-32768, -32767, -1, 0, 1, 32767], np.int16)


def draw_codes(rng, *shape):
    codes = rng.integers(-32768, 32768, shape).astype(np.int16)
    codes.flat[: len(ENDS)] = ENDS[: codes.size]
    return codes


def draw_scale(rng, low=-14, high=-8):
    """Draws a scale, every third one a power of two, where ties are common."""
    exponent = rng.uniform(low, high)
    return F32(2.0 ** (np.round(exponent) if rng.integers(3) == 0 else exponent))


def wide_tensor(shape, scale):
    return ops.Tensor(tuple(shape), np.int16, scale)


CONVS = {
    "plain": dict(shape=(1, 5, 5, 3), kernel=(3, 3), features=4, activation="relu"),
    "pointwise": dict(shape=(2, 3, 3, 40), kernel=(1, 1), features=5),
    "strided": dict(shape=(1, 6, 6, 3), kernel=(3, 3), features=3, strides=(2, 2), padding="SAME"),
    "depthwise": dict(shape=(1, 5, 5, 6), kernel=(3, 3), features=6, groups=6, activation="relu6"),
    "grouped": dict(shape=(1, 4, 4, 8), kernel=(2, 2), features=4, groups=2),
    "long": dict(shape=(1, 4, 4, 130), kernel=(3, 3), features=3),
}


def conv_case(
    seed, shape, kernel, features, strides=(1, 1), padding="VALID", groups=1, activation="none"
):
    rng = np.random.default_rng(seed)
    x = draw_codes(rng, *shape)
    w = rng.integers(-127, 128, (features, *kernel, shape[3] // groups)).astype(np.int8)
    w_scale = np.array([draw_scale(rng, -9, -5) for _ in range(features)])
    spread = 18000 * 74 * np.sqrt(w[0].size)
    b = rng.integers(-int(spread), int(spread), features).astype(np.int64)
    b[0] = -(2**38) if seed else 2**24
    b = b.astype(F32).astype(np.int64)
    out_scale = draw_scale(rng, -12.5, -12)
    x_scale = F32(out_scale / w_scale.mean() / spread * 12000)
    stride = dict(window_strides=strides, padding=padding)
    out_shape = jax.eval_shape(
        lambda x, w: lax.conv_general_dilated(
            x, w, dimension_numbers=NHWC, feature_group_count=groups, **stride
        ),
        *(jax.ShapeDtypeStruct(each, F32) for each in (shape, w.shape)),
    ).shape
    multiplier = features // groups if groups == shape[3] and groups > 1 else None
    stored, axis = (w, 0) if multiplier is None else (w.transpose(3, 1, 2, 0), 3)
    model = ops.conv(
        wide_tensor(shape, x_scale),
        ops.constant(stored, w_scale, axis=axis),
        ops.constant(b, x_scale * w_scale),
        wide_tensor(out_shape, out_scale),
        strides,
        (1, 1),
        padding,
        activation,
        multiplier,
    )
    assert not ops.delegated(model)

    def apply(x, w, b, x_q, w_scale, out_q):
        form = lattice.convolution(
            x, w, dimension_numbers=NHWC, feature_group_count=groups, **stride
        )
        sums = total.total(form, x, w, b)
        return wide.rescale(sums, x_q, w_scale, out_q, 3, **ACTIVATIONS[activation])

    operands = (floats(w), floats(b), grid(x_scale, 0), jnp.asarray(w_scale), grid(out_scale, 0))
    return apply, ops.run(model, x), (floats(x), *operands)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("seed", range(2))
def test_convolutions_equal_litert(name, seed):
    apply, expected, arguments = conv_case(seed, **CONVS[name])
    assert len(np.unique(expected)) > 5
    assert_exact(apply, expected, *arguments, forms=("jit",))


@pytest.mark.parametrize("scales", ["one", "each", "single output"])
def test_dense_layers_equal_litert(scales):
    rng = np.random.default_rng(0)
    features = 1 if scales == "single output" else 7
    count = 7 if scales == "each" else 1

    @jax.jit
    def apply(x, w, b, x_q, w_scale, out_q):
        form = lattice.dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))
        return wide.rescale_dense(total.total(form, x, w, b), x_q, w_scale, out_q, 1, lo=0.0)

    for _ in range(8):
        x = draw_codes(rng, 40, 50)
        w = rng.integers(-127, 128, (features, 50)).astype(np.int8)
        w_scale = np.array([draw_scale(rng, -9, -5) for _ in range(count)])
        b = rng.integers(-(2**22), 2**22, features).astype(np.int64)
        x_scale = draw_scale(rng)
        out_scale = F32(x_scale * w_scale.mean() * 700)
        model = ops.fully_connected(
            wide_tensor(x.shape, x_scale),
            ops.constant(w, w_scale),
            ops.constant(b, x_scale * w_scale),
            wide_tensor((40, features), out_scale),
            "relu",
        )
        operands = floats(w.T), floats(b), grid(x_scale, 0), jnp.asarray(w_scale)
        found = apply(floats(x), *operands, grid(out_scale, 0))
        np.testing.assert_array_equal(found, ops.run(model, x))


PAIRS = {"ADD": wide.add, "SUB": wide.sub, "MUL": wide.mul}


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_litert(operator, seed):
    rng = np.random.default_rng(seed)
    first, second = (
        draw_codes(rng, 3, 20000),
        draw_codes(rng, *((1, 20000) if seed else (3, 20000))),
    )
    a, b = draw_scale(rng), draw_scale(rng)
    out = F32(a * b * 32767 * 0.3) if operator == "MUL" else draw_scale(rng, -13, -7)
    activation = ("none", "relu", "relu6")[seed]
    kind = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[operator]
    fused = {"fusedActivationFunction": ops.ACTIVATIONS[activation]}
    if operator != "MUL":
        fused["potScaleInt16"] = False
    tensors = [wide_tensor(first.shape, a), wide_tensor(second.shape, b)]
    model = ops.build(
        operator, tensors, wide_tensor(first.shape, out), ops.options(kind, **fused), version=3
    )
    expected = ops.run(model, first, second)
    assert len(np.unique(expected)) > 100

    def apply(x, y, *grids):
        return PAIRS[operator](x, y, *grids, **ACTIVATIONS[activation])

    grids = [grid(each, 0) for each in (a, b, out)]
    assert_exact(apply, expected, floats(first), floats(second), *grids, forms=("jit",))


@pytest.mark.parametrize("size", [5, 37, 1003])
def test_sums_of_one_shape_equal_litert(size):
    """Sixteen numbers of an example at a time are rounded otherwise than the last few."""
    rng = np.random.default_rng(size)
    apply = jax.jit(wide.add)
    for ratio in (0.037, 0.9, 1.0, 3.3, 21.0):
        a, out = draw_scale(rng), draw_scale(rng, -12, -8)
        first, second = draw_codes(rng, 1, size), rng.permutation(draw_codes(rng, size))[None]
        scales = (a, F32(a * ratio), out)
        tensors = [wide_tensor(first.shape, scale) for scale in scales]
        fused = ops.options("AddOptions", potScaleInt16=False)
        model = ops.build("ADD", tensors[:2], tensors[2], fused, version=3)
        expected = ops.run(model, first, second)
        grids = [grid(scale, 0) for scale in scales]
        found = apply(floats(first), floats(second), *grids)
        np.testing.assert_array_equal(found, expected)
        rows = [np.repeat(floats(each), 2, axis=0) for each in (first, second)]
        np.testing.assert_array_equal(apply(*rows, *grids), np.repeat(expected, 2, axis=0))


ALL = np.arange(-32768, 32768, dtype=np.int16).reshape(1, -1)


@pytest.mark.parametrize("seed", range(4))
def test_functions_of_one_tensor_equal_litert(seed):
    rng = np.random.default_rng(seed)
    x_scale, out_scale = draw_scale(rng), draw_scale(rng)
    out_scale = x_scale if seed == 3 else out_scale
    slope = rng.uniform(0.01, 0.5) * (-1) ** seed
    x_q, out_q = grid(x_scale, 0), grid(out_scale, 0)
    leaky = ops.options("LeakyReluOptions", alpha=slope)
    cases = {
        "QUANTIZE": (None, wide.requantize),
        "RELU": (None, lambda x, q, out: wide.requantize(x, q, out, lo=0.0)),
        "LEAKY_RELU": (leaky, lambda x, q, out: wide_functions.leaky_relu(x, q, out, slope)),
    }
    for operator, (options, function) in cases.items():
        tensors = [wide_tensor(ALL.shape, x_scale)], wide_tensor(ALL.shape, out_scale)
        expected = ops.run(ops.build(operator, *tensors, options, version=2), ALL)
        assert_exact(function, expected, floats(ALL), x_q, out_q, forms=("jit",))


@pytest.mark.parametrize("seed", range(3))
def test_reals_become_codes_as_in_litert(seed):
    rng = np.random.default_rng(seed)
    scale = draw_scale(rng)
    ties = (np.arange(-33000, 33000) + 0.5) * scale
    x = np.concatenate([ties, rng.normal(0, 16000 * scale, 50000)]).astype(F32)
    model = ops.build(
        "QUANTIZE", [ops.Tensor(x.shape, F32)], wide_tensor(x.shape, scale), None, version=2
    )
    expected = ops.run(model, x)

    def quantize(x, q):
        return lattice.quantize(x, q, wide.CODES)

    assert_exact(quantize, expected, jnp.asarray(x), grid(scale, 0), forms=("jit",))


@pytest.mark.parametrize("operator", ["MEAN", "SUM"])
@pytest.mark.parametrize("seed", range(4))
def test_reductions_equal_litert(operator, seed):
    rng = np.random.default_rng(seed)
    x = draw_codes(rng, 3, *rng.integers(1, 9, 2), 50)
    axes, keep = [((1, 2), True), ((1, 2), False), ((3,), False), ((1, 2, 3), True)][seed]
    scale = draw_scale(rng)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    out_scale = F32(scale * rng.uniform(0.1, 1.2))
    out_scale = F32(out_scale * np.sqrt(count)) if operator == "SUM" else out_scale
    shape = x.mean(axes, keepdims=keep).shape
    tensors = wide_tensor(x.shape, scale), axes, wide_tensor(shape, out_scale)
    expected = ops.run(ops.reduce(operator, *tensors, keep), x)
    function = wide_reductions.mean if operator == "MEAN" else wide_reductions.sum

    def apply(x, x_q, out_q):
        return function(x, x_q, out_q, axes, keep)

    operands = grid(scale, 0), grid(out_scale, 0)
    assert_exact(apply, expected, floats(x), *operands, forms=("jit",))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_average_pools_equal_litert(padding):
    x = draw_codes(np.random.default_rng(0), 2, 7, 7, 5)
    shape = (2, 4, 4, 5) if padding == "SAME" else (2, 3, 3, 5)
    tensors = wide_tensor(x.shape, 0.01), wide_tensor(shape, 0.01)
    expected = ops.run(ops.pool("AVERAGE_POOL_2D", *tensors, (3, 3), (2, 2), padding, "relu"), x)

    def pool(x, q):
        windows = dict(window_dimensions=(1, 3, 3, 1), window_strides=(1, 2, 2, 1))
        return wide_reductions.avg_pool(x, q, **windows, padding=padding, lo=0.0)

    assert_exact(pool, expected, floats(x), grid(0.01, 0))


@pytest.mark.parametrize("length", [8, 1500])
def test_products_of_two_activations_equal_litert(length):
    rng = np.random.default_rng(length)
    a, b = draw_codes(rng, 2, 5, length), draw_codes(rng, 2, length, 4)
    scales = draw_scale(rng), draw_scale(rng)
    out_scale = F32(scales[0] * scales[1] * 20000 * np.sqrt(length))
    tensors = (wide_tensor(x.shape, s) for x, s in zip((a, b), scales, strict=True))
    model = ops.batch_matmul(*tensors, wide_tensor((2, 5, 4), out_scale))

    def apply(a, b, a_q, b_q, out_q):
        return wide.rescale_matmul(total.matmul(a, b), a_q, b_q, out_q)

    operands = floats(b), grid(scales[0], 0), grid(scales[1], 0), grid(out_scale, 0)
    assert_exact(apply, ops.run(model, a, b), floats(a), *operands, forms=("jit",))


@pytest.mark.parametrize("function", ["LOGISTIC", "TANH"])
@pytest.mark.parametrize("seed", range(4))
def test_sigmoids_equal_litert(function, seed):
    scale = draw_scale(np.random.default_rng(seed), -14, -9)
    tensors = [wide_tensor(ALL.shape, scale)], wide_tensor(ALL.shape, 2.0**-15)
    expected = ops.run(ops.build(function, *tensors, version=3), ALL)
    apply = {"LOGISTIC": wide_functions.logistic, "TANH": wide_functions.tanh}[function]
    assert_exact(apply, expected, floats(ALL), grid(scale, 0), forms=("jit",))


@pytest.mark.parametrize("length", [1, 2, 10, 1000])
def test_softmaxes_equal_litert(length):
    rng = np.random.default_rng(length)
    for spread in (32768, 500):
        x = rng.integers(-spread, spread, (max(4000 // length, 4), length)).astype(np.int16)
        scale = draw_scale(rng, -14, -8)
        tensors = [wide_tensor(x.shape, scale)], wide_tensor(x.shape, 2.0**-15)
        model = ops.build("SOFTMAX", *tensors, ops.options("SoftmaxOptions", beta=1.0), version=3)
        expected = ops.run(model, x)
        assert_exact(wide_functions.softmax, expected, floats(x), grid(scale, 0), forms=("jit",))


TABLED = {
    "EXP": (wide_functions.exp, "ExpOptions", {}, lambda scale: np.exp(scale * 32767) / 32767),
    "LOG": (wide_functions.log, None, {}, lambda scale: 1e-3),
    "GELU": (wide_functions.gelu, "GeluOptions", {"approximate": False}, lambda scale: scale),
    "tanh": (wide_functions.gelu, "GeluOptions", {"approximate": True}, lambda scale: scale * 0.7),
}


@pytest.mark.parametrize("name", TABLED)
def test_tabled_functions_equal_litert(name):
    rng = np.random.default_rng(0)
    function, kind, how, out_scale = TABLED[name]
    apply = jax.jit(lambda *arguments: function(*arguments, **how))
    for _ in range(4):
        scales = [scale := draw_scale(rng, -14, -11), F32(out_scale(scale))]
        options = ops.options(kind, **how) if kind else None
        tensors = [wide_tensor(ALL.shape, each) for each in scales]
        operator = "GELU" if name == "tanh" else name
        expected = ops.run(ops.build(operator, tensors[:1], tensors[1], options, version=2), ALL)
        assert len(np.unique(expected)) > 1000
        np.testing.assert_array_equal(apply(floats(ALL), *(grid(s, 0) for s in scales)), expected)


def test_gradients_are_those_of_the_reals():
    half, one = grid(0.5, 0), grid(1.0, 0)

    def dense(x, w, b, scale):
        form = lattice.dot(x, w, dimension_numbers=(((1,), (0,)), ((), ())))
        return wide.rescale_dense(total.total(form, x, w, b), half, scale, one, 1).sum()

    slopes = jax.jit(jax.grad(dense, (0, 1, 2, 3)))(
        jnp.array([[300.0, -40.0]]), jnp.array([[3.0], [5.0]]), jnp.ones(1), jnp.full(1, 0.25)
    )
    for found, expected in zip(slopes, ([3, 5], [300, -40], [1], [4 * 701]), strict=True):
        np.testing.assert_allclose(np.ravel(found), np.array(expected) / 8, rtol=1e-6)

    @jax.jit
    def others(x, y):
        return (
            jax.grad(lambda x, y: wide.mul(x, y, half, half, one), (0, 1))(x, y),
            jax.grad(lambda x: wide.requantize(x, half, one, lo=0.0))(y),
            jax.grad(lambda x: wide_functions.leaky_relu(x, half, one, 0.25))(y),
            jax.grad(lambda x: wide_functions.logistic(x, half))(0 * x),
            jax.grad(lambda x: wide_reductions.sum(x, half, one, (0,)).sum())(jnp.full(2, x))[0],
        )

    found = others(jnp.float32(8.0), jnp.float32(-3.0))
    np.testing.assert_allclose(
        np.array(jax.tree.leaves(found)), [-3 / 4, 8 / 4, 0, 0.125, 2.0**12, 0.5], rtol=1e-6
    )
