"""The lattice against LiteRT itself, operator by operator, with equality and no tolerance.

Every case runs three ways: eagerly, jitted with all operands as arguments, and jitted with the
scales and weights closed over as constants, because compilers rewrite constants.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.products import MAX_EXACT_TERMS
from tests.support import tflite_ops as ops

F32 = np.float32
NHWC = ("NHWC", "OHWI", "NHWC")
ACTIVATIONS = {
    "none": {},
    "relu": {"lo": 0.0},
    "relu6": {"lo": 0.0, "hi": 6.0},
    "relu_n1_to_1": {"lo": -1.0, "hi": 1.0},
}


def draw_scale(rng, low=-6, high=0):
    """Draws a scale, every third one a power of two, where ties are common."""
    exponent = rng.uniform(low, high)
    return F32(2.0 ** (np.round(exponent) if rng.integers(3) == 0 else exponent))


def draw_zero(rng):
    return int(rng.choice([-128, -127, 0, 127, rng.integers(-128, 128)]))


def draw_codes(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def draw_weights(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def grid(scale, zero):
    return Affine(jnp.float32(scale), jnp.float32(zero))


def floats(codes):
    return jnp.asarray(codes, jnp.float32)


def assert_exact(fn, expected, x, *rest, forms=("eager", "jit", "constants")):
    """Asserts that fn(x, *rest) gives `expected` eagerly and jitted both ways."""
    ways = {
        "eager": fn,
        "jit": jax.jit(fn),
        "constants": lambda x, *rest: jax.jit(lambda x: fn(x, *rest))(x),
    }
    for form in forms:
        found = np.asarray(ways[form](x, *rest))
        np.testing.assert_array_equal(found, expected.astype(F32), err_msg=form)


def forms_of(seed):
    """Spends the compilation of every form on the first draw only."""
    return ("eager", "jit", "constants") if seed == 0 else ("jit",)


PAIRS = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128), indexing="ij"))
FIRST, SECOND = PAIRS.astype(np.int8).reshape(2, 1, 256, 256, 1)


class TestGrid:
    @pytest.mark.parametrize("seed", range(4))
    def test_quantize_equals_litert_on_ties_and_out_of_range(self, seed):
        rng = np.random.default_rng(seed)
        scale, zero = draw_scale(rng, -9, 2), draw_zero(rng)
        ties = (np.arange(-300, 300) + 0.5) * scale
        noise = rng.normal(size=20000) * 60 * scale
        x = np.concatenate([noise, ties, [1e30, -1e30, np.inf, -np.inf, 0.0]]).astype(F32)[None]
        model = ops.unary(
            "QUANTIZE",
            ops.Tensor(x.shape, np.float32),
            ops.Tensor(x.shape, scale=scale, zero_point=zero),
        )
        assert ops.delegated(model)
        expected, q = ops.run(model, x), grid(scale, zero)
        assert_exact(lattice.quantize, expected, jnp.asarray(x), q, forms=forms_of(seed))

    @pytest.mark.parametrize("seed", range(4))
    def test_dequantize_equals_litert(self, seed):
        rng = np.random.default_rng(seed)
        scale, zero = draw_scale(rng, -9, 2), draw_zero(rng)
        x = np.arange(-128, 128, dtype=np.int8)[None]
        model = ops.unary(
            "DEQUANTIZE",
            ops.Tensor(x.shape, scale=scale, zero_point=zero),
            ops.Tensor(x.shape, np.float32),
        )
        expected, q = ops.run(model, x), grid(scale, zero)
        assert_exact(lattice.dequantize, expected, floats(x), q, forms=forms_of(seed))

    def test_quantize_does_not_merge_with_a_scaling_before_it(self):
        x = np.random.default_rng(0).uniform(0, 255, 50000).astype(F32)
        scale = F32(0.0123)
        expected = np.rint((x * F32(1 / 255)) * (F32(1) / scale)) + 3
        found = jax.jit(lambda x: lattice.quantize(x * F32(1 / 255), grid(scale, 3)))(x)
        np.testing.assert_array_equal(np.asarray(found), expected.clip(-128, 127))

    def test_bias_codes_are_numpys(self):
        rng = np.random.default_rng(1)
        b, scale = rng.normal(size=300).astype(F32), rng.uniform(0.01, 0.1, 300).astype(F32)
        in_scale = F32(0.037)
        expected = np.rint(b / (in_scale * scale))
        assert_exact(lattice.bias_codes, expected, jnp.asarray(b), in_scale, scale)

    def test_round_and_quantize_gradients(self):
        q = grid(0.5, 100)
        x = jnp.array([-200.0, -3.2, 0.0, 13.5, 13.7, 14.0])
        slope = jax.vmap(jax.grad(lambda v: lattice.quantize(v, q)))(x)
        np.testing.assert_array_equal(slope, [0.0, 2.0, 2.0, 2.0, 2.0, 0.0])

    def test_learned_scale_gradient_is_lsq(self):
        # Esser et al. 2020 (1902.08153), eq. 3: round(v/s) - v/s inside, the bound outside.
        v = jnp.array([0.3, -0.9, 2.0, -40.0, 40.0])
        s = 0.25

        def fake(s, v):
            q = Affine(s, jnp.float32(0.0))
            return lattice.dequantize(lattice.quantize(v, q), q)

        found = jax.vmap(jax.grad(fake), (None, 0))(jnp.float32(s), v)
        expected = np.where(np.abs(v / s) < 127, np.rint(v / s) - v / s, np.sign(v) * 127.5 - 0.5)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("activation,value", [("relu6", 6.0), ("relu_n1_to_1", -1.0)])
    def test_clamps_near_ties_equal_litert(self, activation, value):
        rng = np.random.default_rng(3)
        x = np.full((1, 1, 1, 1), 127 if value > 0 else -128, np.int8)
        for step in range(20, 140, 9):
            scale = F32(abs(value) / (step + 0.5))
            scale = np.nextafter(scale, F32(rng.choice([0, 1]))) if rng.integers(2) else scale
            zero = draw_zero(rng)
            tensor = ops.Tensor(x.shape, scale=scale, zero_point=zero)
            for operator, pool in (
                ("MAX_POOL_2D", lattice.max_pool),
                ("AVERAGE_POOL_2D", lattice.avg_pool),
            ):
                model = ops.pool(operator, tensor, tensor, (1, 1), (1, 1), "VALID", activation)
                found = pool(
                    floats(x),
                    grid(scale, zero),
                    window_dimensions=(1,) * 4,
                    window_strides=(1,) * 4,
                    padding="VALID",
                    **ACTIVATIONS[activation],
                )
                assert found.item() == ops.run(model, x).item()


CONVS = {
    "plain": dict(shape=(2, 9, 8, 5), kernel=(3, 3), features=7),
    "pointwise": dict(shape=(2, 5, 5, 70), kernel=(1, 1), features=9, activation="relu6"),
    "same stride 2": dict(
        shape=(2, 10, 7, 8), kernel=(3, 3), features=6, strides=(2, 2), padding="SAME"
    ),
    "same even": dict(
        shape=(1, 11, 8, 3), kernel=(4, 2), features=5, strides=(2, 3), padding="SAME"
    ),
    "dilated": dict(
        shape=(1, 12, 11, 4), kernel=(3, 2), features=5, dilation=(2, 3), padding="SAME"
    ),
    "one input channel": dict(shape=(2, 9, 9, 1), kernel=(3, 3), features=8, padding="SAME"),
    "one output channel": dict(shape=(2, 9, 9, 6), kernel=(3, 3), features=1, activation="relu"),
    "grouped": dict(shape=(2, 8, 8, 12), kernel=(3, 3), features=8, groups=4, padding="SAME"),
    "depthwise": dict(
        shape=(2, 9, 10, 8), kernel=(3, 3), features=8, groups=8, strides=(2, 2), padding="SAME"
    ),
    "depth multiplier": dict(
        shape=(2, 9, 9, 4), kernel=(5, 3), features=12, groups=4, activation="relu_n1_to_1"
    ),
    "dilated depthwise": dict(
        shape=(1, 12, 9, 6), kernel=(3, 3), features=6, groups=6, dilation=(2, 2), padding="SAME"
    ),
    "long": dict(shape=(1, 5, 5, 130), kernel=(3, 3), features=4, padding="SAME"),
    "long grouped": dict(shape=(1, 5, 5, 240), kernel=(3, 3), features=4, groups=2),
    "long window": dict(shape=(1, 31, 27, 2), kernel=(30, 26), features=3, groups=1),
}


def conv(x, w, bias, x_q, w_scale, out_q, *, dimension_numbers, lo=None, hi=None, **window):
    """A whole convolution: its sums, and what follows them."""
    acc = lattice.conv_sum(x, w, bias, x_q, dimension_numbers=dimension_numbers, **window)
    axis = dimension_numbers[2].index("C")
    return lattice.rescale(acc, x_q, w_scale, out_q, axis, lo=lo, hi=hi)


def dense(x, w, bias, x_q, w_scale, out_q, *, dimension_numbers, lo=None, hi=None):
    """A whole dense layer."""
    acc = lattice.dot_sum(x, w, bias, x_q, dimension_numbers=dimension_numbers)
    return lattice.rescale(acc, x_q, w_scale, out_q, acc.ndim - 1, lo=lo, hi=hi)


def conv_case(
    seed,
    shape,
    kernel,
    features,
    groups=1,
    strides=(1, 1),
    dilation=(1, 1),
    padding="VALID",
    activation="none",
    extreme=False,
):
    """Draws a conv, and returns LiteRT's answer with the arguments of `conv`."""
    rng = np.random.default_rng(seed)
    depth = shape[3] // groups
    x, w = draw_codes(rng, *shape), draw_weights(rng, features, *kernel, depth)
    x_zero, zero = draw_zero(rng), int(rng.integers(-40, 41))
    w_scale = np.array([draw_scale(rng, -8, -6) for _ in range(features)], F32)
    fan_in = np.prod(kernel) * depth
    spread = 120 * 74 * np.sqrt(fan_in)
    b = rng.integers(-spread, spread, features).astype(np.int32)
    if extreme:
        x, w, x_zero, zero = np.full_like(x, 127), np.full_like(w, 127), -128, 0
        w.flat[:: 1 + seed] = 126
        spread = 255 * 127 * fan_in / 2
    x_scale = F32(2.0 ** np.round(np.log2(8 / spread / w_scale.mean())) * rng.choice([1.0, 0.77]))
    out_scale = draw_scale(rng, -4, -3)
    stride = dict(window_strides=strides, padding=padding, rhs_dilation=dilation)
    out_shape = jax.eval_shape(
        lambda x, w: lax.conv_general_dilated(
            x, w, dimension_numbers=NHWC, feature_group_count=groups, **stride
        ),
        jax.ShapeDtypeStruct(shape, F32),
        jax.ShapeDtypeStruct(w.shape, F32),
    ).shape
    multiplier = features // groups if groups == shape[3] and groups > 1 else None
    stored, axis = (w, 0) if multiplier is None else (w.transpose(3, 1, 2, 0), 3)
    model = ops.conv(
        ops.Tensor(shape, scale=x_scale, zero_point=x_zero),
        ops.constant(stored, w_scale, axis=axis),
        ops.constant(b, x_scale * w_scale),
        ops.Tensor(out_shape, scale=out_scale, zero_point=zero),
        strides,
        dilation,
        padding,
        activation,
        multiplier,
    )
    assert ops.delegated(model)

    def apply(x, w, b, x_q, w_scale, out_q):
        return conv(
            x,
            w,
            b,
            x_q,
            w_scale,
            out_q,
            dimension_numbers=NHWC,
            feature_group_count=groups,
            **stride,
            **ACTIVATIONS[activation],
        )

    operands = (floats(w), floats(b), grid(x_scale, x_zero), jnp.asarray(w_scale))
    return apply, ops.run(model, x), (floats(x), *operands, grid(out_scale, zero))


class TestConv:
    @pytest.mark.parametrize("name", CONVS)
    @pytest.mark.parametrize("seed", range(2))
    def test_equals_litert(self, name, seed):
        apply, expected, arguments = conv_case(seed, **CONVS[name])
        assert len(np.unique(expected)) > 5
        assert_exact(apply, expected, *arguments, forms=forms_of(seed))

    @pytest.mark.parametrize("name", ["long", "long grouped", "long window"])
    def test_is_exact_beyond_2_to_the_24(self, name):
        apply, expected, arguments = conv_case(1, **CONVS[name], extreme=True)
        x, w = arguments[:2]
        assert 255 * float(jnp.abs(w).sum((1, 2, 3)).max()) > 2**24
        assert_exact(apply, expected, *arguments)

    def test_any_layout(self):
        apply, expected, (x, w, *rest) = conv_case(0, **CONVS["grouped"])
        found = conv(
            x.transpose(0, 3, 1, 2),
            w.transpose(1, 2, 3, 0),
            *rest,
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
            feature_group_count=4,
        )
        np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)

    def test_vmap_equals_a_loop(self):
        apply, expected, (x, *rest) = conv_case(0, **CONVS["long"])
        found = jax.vmap(lambda x: apply(x, *rest))(jnp.stack([x, x]))
        np.testing.assert_array_equal(found, np.stack([expected, expected]))

    @pytest.mark.parametrize("name", ["plain", "depthwise", "long grouped"])
    def test_gradients_are_those_of_fake_quantization(self, name):
        case = dict(CONVS[name], activation="relu6")
        apply, _, (x, w, b, x_q, w_scale, out_q) = conv_case(0, **case)
        settings = dict(
            window_strides=case.get("strides", (1, 1)),
            padding=case.get("padding", "VALID"),
            dimension_numbers=NHWC,
            feature_group_count=case.get("groups", 1),
        )
        out_q = Affine(out_q.scale, jnp.float32(-100.0))

        def real(x, w, b, x_scale, w_scale):
            x_real = (x - x_q.zero_point) * x_scale
            y = lax.conv_general_dilated(
                x_real, w * w_scale.reshape(-1, 1, 1, 1), precision="highest", **settings
            )
            y = y + (b * x_scale * w_scale).reshape(1, 1, 1, -1)
            y = jnp.minimum(jax.nn.relu(y), 6.0)
            return jnp.minimum(y / out_q.scale + out_q.zero_point, 127.0)

        def coded(x, w, b, x_scale, w_scale):
            return apply(x, w, b, Affine(x_scale, x_q.zero_point), w_scale, out_q)

        arguments = (x, w, b, x_q.scale, w_scale)
        weights = jax.random.normal(jax.random.key(0), coded(*arguments).shape)
        found = jax.jit(jax.grad(lambda *a: (coded(*a) * weights).sum(), range(5)))(*arguments)
        expected = jax.jit(jax.grad(lambda *a: (real(*a) * weights).sum(), range(5)))(*arguments)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


def dense_case(seed, batch, depth, features, per_channel=True, extreme=False):
    rng = np.random.default_rng(seed)
    x, w = draw_codes(rng, batch, depth), draw_weights(rng, features, depth)
    x_scale, x_zero, zero = draw_scale(rng), draw_zero(rng), draw_zero(rng)
    if extreme:
        x, w, x_zero = np.full_like(x, 127), np.full_like(w, 127), -128
        w.flat[:: 1 + seed] = 126
    w_scale = np.array([draw_scale(rng, -9, -4) for _ in range(features)], F32)
    w_scale = w_scale if per_channel else w_scale[0]
    b = rng.integers(-(2**15), 2**15, features).astype(np.int32)
    spread = (255 * 127 * depth / 200) if extreme else 255 * 40 * np.sqrt(depth) / 100
    out_scale = F32(x_scale * w_scale.max() * spread)
    model = ops.fully_connected(
        ops.Tensor(x.shape, scale=x_scale, zero_point=x_zero),
        ops.constant(w, w_scale),
        ops.constant(b, x_scale * w_scale),
        ops.Tensor((batch, features), scale=out_scale, zero_point=zero),
        "relu6" if seed % 2 else "none",
    )
    assert ops.delegated(model)

    def apply(x, w, b, x_q, w_scale, out_q):
        bounds = ACTIVATIONS["relu6" if seed % 2 else "none"]
        numbers = (((1,), (1,)), ((), ()))
        return dense(x, w, b, x_q, w_scale, out_q, dimension_numbers=numbers, **bounds)

    operands = (floats(w), floats(b), grid(x_scale, x_zero), jnp.asarray(w_scale))
    return apply, ops.run(model, x), (floats(x), *operands, grid(out_scale, zero))


class TestDense:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("per_channel", [True, False])
    def test_equals_litert(self, seed, per_channel):
        depth = int(np.random.default_rng(seed).integers(1, 400))
        assert_exact_case(dense_case(seed, 33, depth, 11, per_channel), forms_of(seed))

    @pytest.mark.parametrize("depth", [MAX_EXACT_TERMS, MAX_EXACT_TERMS + 1, 3000])
    def test_is_exact_beyond_2_to_the_24(self, depth):
        assert_exact_case(dense_case(2, 3, depth, 5, extreme=True))

    def test_rounds_a_long_sum_and_its_bias_once(self):
        # The products add up to 2**24 + 1 and the bias to 2**24 + 2, which float32 holds; either
        # alone rounds to 2**24, whose multiple is the tie 64.5 and goes to 64.
        x = jnp.array([[127.0] * 519 + [-126.0]])
        w = jnp.array([[127.0] * 518 + [7.0, 1.0]])
        found = dense(
            x,
            w,
            jnp.array([1.0]),
            grid(1.0, -128),
            F32(129 / 2**25),
            grid(1.0, 0),
            dimension_numbers=(((1,), (1,)), ((), ())),
        )
        assert found.item() == 65.0

    def test_several_contracted_axes(self):
        apply, expected, (x, w, *rest) = dense_case(0, 4, 24 * 30, 5)
        found = dense(
            x.reshape(4, 24, 30),
            w.reshape(5, 24, 30),
            *rest,
            dimension_numbers=(((1, 2), (1, 2)), ((), ())),
        )
        np.testing.assert_array_equal(found, expected)

    def test_several_free_axes_are_refused(self):
        one = grid(1.0, 0)
        with pytest.raises(ValueError, match="not one free axis"):
            dense(
                jnp.ones((2, 3)),
                jnp.ones((3, 4, 5)),
                jnp.ones(20),
                one,
                jnp.ones(20),
                one,
                dimension_numbers=(((1,), (0,)), ((), ())),
            )


def assert_exact_case(case, forms=("eager", "jit", "constants")):
    apply, expected, arguments = case
    assert_exact(apply, expected, *arguments, forms=forms)


BINARY = {"ADD": lattice.add, "SUB": lattice.sub, "MUL": lattice.mul}


class TestPointwise:
    @pytest.mark.parametrize("operator", BINARY)
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_litert_on_all_code_pairs(self, operator, seed):
        rng = np.random.default_rng(seed)
        scales, zeros = [draw_scale(rng) for _ in range(3)], [draw_zero(rng) for _ in range(3)]
        activation = list(ACTIVATIONS)[seed % 4]
        a, b, out = (
            ops.Tensor(FIRST.shape, scale=s, zero_point=z)
            for s, z in zip(scales, zeros, strict=True)
        )
        model = ops.binary(operator, a, b, out, activation)
        assert ops.delegated(model)

        def apply(x, y, *grids):
            return BINARY[operator](x, y, *grids, **ACTIVATIONS[activation])

        grids = [grid(s, z) for s, z in zip(scales, zeros, strict=True)]
        expected = ops.run(model, FIRST, SECOND)
        operands = (floats(FIRST), floats(SECOND), *grids)
        assert_exact(apply, expected, *operands, forms=forms_of(seed))

    @pytest.mark.parametrize("operator", BINARY)
    @pytest.mark.parametrize("shape", [(1, 8), (8,), (), (2, 1, 1, 8), (2, 5, 5, 1)])
    def test_broadcasts_as_litert(self, operator, shape):
        rng = np.random.default_rng(7)
        a, b = draw_codes(rng, 2, 5, 5, 8), draw_codes(rng, *shape)
        model = ops.binary(
            operator,
            ops.Tensor(a.shape, scale=0.05, zero_point=3),
            ops.constant(b, 0.031, -7),
            ops.Tensor(a.shape, scale=0.0731, zero_point=11),
        )
        grids = (grid(0.05, 3), grid(0.031, -7), grid(0.0731, 11))
        assert_exact(BINARY[operator], ops.run(model, a), floats(a), floats(b), *grids)

    @pytest.mark.parametrize("operator", BINARY)
    def test_gradients_are_those_of_the_reals(self, operator):
        rng = np.random.default_rng(0)
        a, b = floats(draw_codes(rng, 500)), floats(draw_codes(rng, 500))
        zero, weights = jnp.float32(-3.0), jnp.asarray(rng.normal(size=500), jnp.float32)

        def real(a, b, a_scale, b_scale, scale):
            a, b = (a - zero) * a_scale, (b - zero) * b_scale
            y = {"ADD": a + b, "SUB": a - b, "MUL": a * b}[operator]
            codes = jax.nn.relu(y) / scale + zero
            return (jnp.where(codes > 127, 127, codes) * weights).sum()

        def coded(a, b, *scales):
            grids = [Affine(s, zero) for s in scales]
            return (BINARY[operator](a, b, *grids, lo=0.0) * weights).sum()

        arguments = (a, b, F32(0.05), F32(0.03), F32(0.06))
        found = jax.jit(jax.grad(coded, range(5)))(*arguments)
        expected = jax.jit(jax.grad(real, range(5)))(*arguments)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())

    @pytest.mark.parametrize("seed", range(8))
    def test_requantize_equals_litert(self, seed):
        rng = np.random.default_rng(seed)
        (a, b), (za, zb) = [draw_scale(rng) for _ in "ab"], [draw_zero(rng) for _ in "ab"]
        x = np.arange(-128, 128, dtype=np.int8)[None]
        model = ops.unary(
            "QUANTIZE",
            ops.Tensor(x.shape, scale=a, zero_point=za),
            ops.Tensor(x.shape, scale=b, zero_point=zb),
        )
        operands = (floats(x), grid(a, za), grid(b, zb))
        assert_exact(lattice.requantize, ops.run(model, x), *operands, forms=forms_of(seed))


class TestReductions:
    @pytest.mark.parametrize("operator", ["MAX_POOL_2D", "AVERAGE_POOL_2D"])
    @pytest.mark.parametrize("padding", ["SAME", "VALID"])
    @pytest.mark.parametrize("seed", range(4))
    def test_pools_equal_litert(self, operator, padding, seed):
        rng = np.random.default_rng(seed)
        x = draw_codes(rng, 2, *rng.integers(6, 14, 2), 5)
        window, strides = rng.integers(1, 6, 2).tolist(), rng.integers(1, 4, 2).tolist()
        scale, zero = draw_scale(rng), draw_zero(rng)
        activation = list(ACTIVATIONS)[seed]
        pool = {"MAX_POOL_2D": lattice.max_pool, "AVERAGE_POOL_2D": lattice.avg_pool}[operator]

        def apply(x, q):
            return pool(
                x,
                q,
                window_dimensions=(1, *window, 1),
                window_strides=(1, *strides, 1),
                padding=padding,
                **ACTIVATIONS[activation],
            )

        shape = jax.eval_shape(apply, floats(x), grid(scale, zero)).shape
        tensors = [ops.Tensor(s, scale=scale, zero_point=zero) for s in (x.shape, shape)]
        model = ops.pool(operator, *tensors, window, strides, padding, activation)
        overlapping = window[0] >= strides[0] and window[1] >= strides[1]
        assert ops.delegated(model) == (operator == "MAX_POOL_2D" and overlapping)
        operands = (floats(x), grid(scale, zero))
        assert_exact(apply, ops.run(model, x), *operands, forms=forms_of(seed))

    @pytest.mark.parametrize("operator", ["MEAN", "SUM"])
    @pytest.mark.parametrize("axes", [(1, 2), (0,), (1,), (3,), (1, 2, 3)])
    @pytest.mark.parametrize("seed", range(2))
    def test_reduce_equals_litert(self, operator, axes, seed):
        rng = np.random.default_rng(seed)
        x = draw_codes(rng, 2, *rng.integers(1, 9, 2), 50)
        count = np.prod([x.shape[axis] for axis in axes])
        (zx, zo), x_scale = [draw_zero(rng) for _ in "xo"], draw_scale(rng)
        scale = F32(x_scale * draw_scale(rng, -1, 1) * (count**0.5 if operator == "SUM" else 1))
        if seed == 0:
            scale, zo = x_scale, zx
        keep = seed == 1
        reduce = {"MEAN": lattice.mean, "SUM": lattice.sum}[operator]
        model = ops.reduce(
            operator,
            ops.Tensor(x.shape, scale=x_scale, zero_point=zx),
            axes,
            ops.Tensor(x.sum(axes, keepdims=keep).shape, scale=scale, zero_point=zo),
            keep,
        )
        assert ops.delegated(model)
        assert_exact(
            lambda x, *grids: reduce(x, *grids, axes, keep),
            ops.run(model, x),
            floats(x),
            grid(x_scale, zx),
            grid(scale, zo),
            forms=forms_of(seed),
        )

    def test_gradients(self):
        x = floats(draw_codes(np.random.default_rng(0), 1, 4, 4, 3))
        q, out = grid(0.1, 5), grid(0.05, -3)
        settings = dict(window_dimensions=(1, 3, 3, 1), window_strides=(1, 2, 2, 1))
        found = jax.grad(lambda x: lattice.avg_pool(x, q, padding="SAME", **settings).sum())(x)
        ones = jnp.ones_like(x)
        expected = jax.grad(
            lambda x: (
                lax.reduce_window(x, 0.0, lax.add, *settings.values(), "SAME")
                / lax.reduce_window(ones, 0.0, lax.add, *settings.values(), "SAME")
            ).sum()
        )(x)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        found = jax.grad(lambda x: lattice.mean(x / 8, q, out, (1, 2)).sum())(x)
        np.testing.assert_allclose(found, np.full(x.shape, 2 / 16 / 8), rtol=1e-6)
        pooled = dict(settings, padding="VALID")
        found = jax.grad(lambda x: lattice.max_pool(x, q, lo=0.0, **pooled).sum())(x)
        expected = jax.grad(
            lambda x: jnp.maximum(
                lax.reduce_window(x, -jnp.inf, lax.max, *settings.values(), "VALID"), 5.0
            ).sum()
        )(x)
        np.testing.assert_array_equal(found, expected)

    def test_window_too_large_to_sum_is_refused(self):
        with pytest.raises(ValueError, match="use mean"):
            lattice.avg_pool(
                jnp.ones((2**17,)),
                grid(1.0, 0),
                window_dimensions=(2**17,),
                window_strides=(1,),
                padding="VALID",
            )


ALL_CODES = np.arange(-128, 128, dtype=np.int8)[None]


class TestFunctions:
    @pytest.mark.parametrize("name", ["logistic", "tanh"])
    @pytest.mark.parametrize("seed", range(3))
    def test_tables_equal_litert(self, name, seed):
        rng = np.random.default_rng(seed)
        function = {"logistic": lattice.logistic, "tanh": lattice.tanh}[name]
        scale, zero = {"logistic": lattice.LOGISTIC_GRID, "tanh": lattice.TANH_GRID}[name]
        jitted = jax.jit(function)
        for _ in range(20):
            x_scale, x_zero = draw_scale(rng, -8, -1), draw_zero(rng)
            model = ops.unary(
                name.upper(),
                ops.Tensor(ALL_CODES.shape, scale=x_scale, zero_point=x_zero),
                ops.Tensor(ALL_CODES.shape, scale=scale, zero_point=zero),
            )
            assert ops.delegated(model)
            expected = ops.run(model, ALL_CODES)
            found = jitted(floats(ALL_CODES), grid(x_scale, x_zero))
            np.testing.assert_array_equal(found, expected)
        assert_exact(function, expected, floats(ALL_CODES), grid(x_scale, x_zero))

    @pytest.mark.parametrize("name", ["HARD_SWISH", "RELU", "RELU6"])
    @pytest.mark.parametrize("seed", range(2))
    def test_fixed_point_equals_litert(self, name, seed):
        rng = np.random.default_rng(seed)
        function = {
            "HARD_SWISH": lattice.hard_swish,
            "RELU": lattice.relu,
            "RELU6": lambda *arguments: lattice.relu(*arguments, hi=6.0),
        }[name]
        jitted = jax.jit(function)
        for draw in range(20):
            scale, zero, x_zero = draw_scale(rng, -7, -1), draw_zero(rng), draw_zero(rng)
            x_scale = F32(scale * 2.0 ** rng.uniform(-2, 3)) if draw else scale
            model = ops.unary(
                name,
                ops.Tensor(ALL_CODES.shape, scale=x_scale, zero_point=x_zero),
                ops.Tensor(ALL_CODES.shape, scale=scale, zero_point=zero),
                version=1 if name == "HARD_SWISH" else 2,
            )
            assert not ops.delegated(model)
            grids, expected = (grid(x_scale, x_zero), grid(scale, zero)), ops.run(model, ALL_CODES)
            np.testing.assert_array_equal(jitted(floats(ALL_CODES), *grids), expected)
        assert_exact(function, expected, floats(ALL_CODES), *grids)

    @pytest.mark.parametrize("seed", range(4))
    def test_softmax_is_at_most_one_step_from_litert_and_seldom(self, seed):
        rng = np.random.default_rng(seed)
        scale, zero = draw_scale(rng, -7, -1), draw_zero(rng)
        x = np.clip(np.rint(rng.normal(size=(4000, 10)) * 30), -128, 127).astype(np.int8)
        model = ops.unary(
            "SOFTMAX",
            ops.Tensor(x.shape, scale=scale, zero_point=zero),
            ops.Tensor(x.shape, scale=1 / 256, zero_point=-128),
        )
        assert not ops.delegated(model)
        steps = np.abs(lattice.softmax(floats(x), grid(scale, zero)) - ops.run(model, x))
        assert steps.max() <= 1
        assert (steps > 0).mean() <= 1e-4

    def test_gradients_are_those_of_the_functions(self):
        x, q, out = jnp.linspace(-30.4, 40.3, 60), grid(0.1, 5), grid(0.05, -3)
        real = (x - 5) * F32(0.1)

        def slope(function, at):
            return jax.jit(jax.vmap(jax.grad(function)))(at)

        sigmoid = slope(lambda v: jax.nn.sigmoid(v) * 256, real) * 0.1
        np.testing.assert_allclose(slope(lambda v: lattice.logistic(v, q), x), sigmoid, rtol=1e-4)
        bend = slope(lambda v: jnp.tanh(v) * 128, real) * 0.1
        np.testing.assert_allclose(slope(lambda v: lattice.tanh(v, q), x), bend, rtol=1e-4)
        swish = slope(jax.nn.hard_swish, real) * 2
        found = slope(lambda v: lattice.hard_swish(v, q, out), x)
        np.testing.assert_allclose(found, swish, rtol=1e-4, atol=1e-6)
        found = slope(lambda v: lattice.relu(v, q, out), x)
        np.testing.assert_allclose(found, np.where(x > 5, 2.0, 0.0), rtol=1e-6)
        cotangent = jax.random.normal(jax.random.key(0), x.shape)
        found = jax.grad(lambda v: (lattice.softmax(v, q) * cotangent).sum())(x)
        expected = jax.grad(lambda v: (jax.nn.softmax((v - 5) * 0.1) * 256 * cotangent).sum())(x)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
