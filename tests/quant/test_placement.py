"""Which steps a function becomes, which tensors share a range, and what is refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax.graph import trace
from compressjax.quant.placement import place, refusals

IMAGE = (2, 8, 8, 4)


def plan_of(fn, *shapes, variables=None):
    args = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes or (IMAGE,)]
    return place(trace(fn, variables or {}, *args, keep_custom=False))


def linen(body, shape=IMAGE):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    x = jax.ShapeDtypeStruct(shape, "float32")
    variables = jax.eval_shape(Network().init, jax.random.key(0), x)
    return plan_of(Network().apply, shape, variables=variables)


def kinds(plan):
    return [step.kind for step in plan.steps]


def find(plan, kind):
    (step,) = [step for step in plan.steps if step.kind == kind]
    return step


def bounds(plan):
    return [(step.kind, step.lo, step.hi) for step in plan.steps]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv(6, (3, 3)), ["conv"]),
        (nn.Conv(6, (3, 3), padding="VALID"), ["conv"]),
        (nn.Conv(6, (3, 3), padding=((1, 1), (1, 1))), ["conv"]),
        (nn.Conv(6, (3, 3), strides=2), ["conv"]),
        (nn.Conv(6, (3, 3), strides=2, padding=((1, 1), (1, 1))), ["pad", "conv"]),
        (nn.Conv(6, (3, 3), padding=((2, 0), (0, 2))), ["pad", "conv"]),
        (nn.Conv(6, (3, 3), kernel_dilation=2), ["conv"]),
        (nn.Conv(8, (3, 3), feature_group_count=2), ["conv"]),
        (nn.Conv(8, (3, 3), feature_group_count=4), ["depthwise_conv"]),
        (nn.Dense(6), ["dense"]),
        (nn.DenseGeneral((2, 3)), ["dense", "reshape", "add"]),
        (nn.DenseGeneral((2, 3), use_bias=False), ["dense", "reshape"]),
        (nn.DenseGeneral(6, axis=(-2, -1)), ["reshape", "dense"]),
        (nn.DenseGeneral(6, axis=(1, 2, 3)), ["reshape", "dense"]),
    ],
)
def test_contractions(layer, expected):
    x = jax.ShapeDtypeStruct(IMAGE, "float32")
    out, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    plan = plan_of(layer.apply, variables=variables)
    assert kinds(plan) == expected
    contraction = next(s for s in plan.steps if s.kind in ("conv", "depthwise_conv", "dense"))
    assert contraction.name.endswith("kernel")
    assert plan.steps[-1].shape == out.shape


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda v, x: x.sum((1, 2)), ["sum"]),
        (lambda v, x: x.sum(-1, keepdims=True) / 7.0, ["sum", "mul"]),
        (lambda v, x: x.sum(-1) / 4.0, ["mean"]),
        (lambda v, x: x.max(1), ["reduce_max"]),
        (lambda v, x: x.min(), ["reduce_min"]),
        (lambda v, x: jax.nn.softmax(x), ["softmax"]),
        (lambda v, x: jax.nn.softmax(x, axis=1), ["transpose", "softmax", "transpose"]),
        (lambda v, x: jnp.repeat(x, 3, axis=1), ["gather"]),
        (lambda v, x: jnp.repeat(x, 3, axis=3), ["gather"]),
        (lambda v, x: jnp.repeat(jnp.repeat(x, 3, axis=2), 3, axis=1), ["resize_nearest"]),
        (
            lambda v, x: jnp.repeat(jnp.repeat(x[:, :6], 2, axis=1), 2, axis=2),
            ["slice", "resize_nearest"],
        ),
        (lambda v, x: jnp.repeat(x[:, jnp.arange(4) // 2], 2, axis=2), ["gather", "gather"]),
        (lambda v, x: jnp.tile(x, (1, 1, 1, 2)), ["concatenate"]),
        (lambda v, x: x[:, jnp.array([2, 0, 1])], ["gather"]),
        (lambda v, x: jax.image.resize(x, (2, 5, 11, 4), "nearest"), ["gather", "gather"]),
    ],
)
def test_reductions_and_choices(fn, expected):
    plan = plan_of(fn)
    assert kinds(plan) == expected
    x = jax.ShapeDtypeStruct(IMAGE, "float32")
    assert plan.steps[-1].shape == jax.eval_shape(lambda x: fn({}, x), x).shape
    shared = {"reduce_max", "reduce_min", "resize_nearest", "gather", "concatenate"}
    assert (plan.observed == ("input_0",)) == bool(shared | {"softmax"} & set(expected)) or (
        not shared & set(expected)
    )


def test_an_image_that_is_read_in_between_is_not_resized_at_once():
    def fn(v, x):
        wide = jnp.repeat(x, 2, axis=1)
        return jnp.repeat(wide, 2, axis=2), wide

    assert kinds(plan_of(fn)) == ["gather", "gather"]


def test_a_line_is_convolved_as_a_row():
    plan = linen(lambda x: nn.Conv(6, (3,), strides=2)(x), (2, 9, 4))
    assert kinds(plan) == ["reshape", "conv", "reshape"]
    row, conv, line = plan.steps
    assert (row.shape, conv.shape, line.shape) == ((2, 1, 9, 4), (2, 1, 5, 6), (2, 5, 6))
    assert conv.params["window_strides"] == (1, 2) and conv.params["padding"] == "SAME"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.ConvTranspose(6, (3, 3), strides=(2, 2)), ["transpose_conv"]),
        (nn.ConvTranspose(6, (2, 2), strides=(3, 3), padding="VALID"), ["transpose_conv"]),
        (
            nn.ConvTranspose(6, (4, 4), strides=(2, 2), padding=((1, 2), (1, 1))),
            ["transpose_conv", "slice"],
        ),
    ],
)
def test_transposed_convolutions(layer, expected):
    x = jax.ShapeDtypeStruct(IMAGE, "float32")
    out, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    plan = plan_of(layer.apply, variables=variables)
    assert kinds(plan) == expected
    assert plan.steps[-1].shape == out.shape
    assert plan.observed == ("input_0", "params/kernel")


KERNEL = jnp.ones((8, 3))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda v, x: jnp.einsum("bhwc,wd->bhcd", x, KERNEL), ["transpose", "dense"]),
        (lambda v, x: jnp.tensordot(KERNEL, x, ((0,), (1,))), ["transpose", "dense", "transpose"]),
        (lambda v, x: jnp.einsum("bhwc,bhvc->bhwv", x, x), ["transpose", "batch_matmul"]),
        (lambda v, x: jnp.einsum("bhwc,bhcv->bhwv", x, x[:, :, :4]), ["slice", "batch_matmul"]),
        (
            lambda v, x: jnp.einsum("bhwc,bvuc->bhwvu", x, x),
            ["reshape", "transpose", "reshape", "batch_matmul", "reshape"],
        ),
        (
            lambda v, x: x[0, 0] @ x[0, 1].T,
            ["slice", "reshape", "slice", "reshape", "transpose", "reshape", "reshape",
             "batch_matmul", "reshape"],
        ),
    ],
)  # fmt: skip
def test_products_over_other_axes(fn, expected):
    plan = plan_of(fn)
    assert kinds(plan) == expected
    x = jax.ShapeDtypeStruct(IMAGE, "float32")
    assert plan.steps[-1].shape == jax.eval_shape(lambda x: fn({}, x), x).shape


def test_a_product_of_two_inputs_has_its_own_range():
    plan = plan_of(lambda v, x: jnp.einsum("bhwc,bhvc->bhwv", x, x))
    product = find(plan, "batch_matmul")
    assert product.inputs == ("input_0", "dot_general_0/right_order")
    assert plan.observed == ("input_0", product.name)


def test_the_parameters_of_a_convolution():
    plan = linen(lambda x: nn.Conv(8, (3, 3), strides=(2, 1), kernel_dilation=(1, 2),
                                   feature_group_count=2)(x))  # fmt: skip
    assert dict(find(plan, "conv").params) == {
        "window_strides": (2, 1),
        "padding": "SAME",
        "rhs_dilation": (1, 2),
        "feature_group_count": 2,
    }


def test_an_explicit_padding_shares_the_range_of_its_input():
    plan = linen(lambda x: nn.Conv(6, (3, 3), strides=2, padding=((1, 1), (1, 1)))(x))
    pad = find(plan, "pad")
    assert plan.ranges[pad.name] == "input_0"
    assert pad.params["padding"] == ((0, 0), (1, 1), (1, 1), (0, 0)) and not pad.params["lowest"]


@pytest.mark.parametrize(("groups", "kind"), [(1, "conv"), (2, "conv"), (4, "depthwise_conv")])
def test_channels_first_convolutions_are_transposed_around(groups, kind):
    def fn(v, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        y = lax.conv_general_dilated(
            x, v["w"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        return jax.nn.relu(y + v["b"][None, :, None, None])

    variables = {"w": np.ones((8, 4 // groups, 3, 3), "f"), "b": np.ones(8, "f")}
    plan = plan_of(fn, (2, 4, 8, 8), variables=variables)
    assert bounds(plan) == [("transpose", None, None), (kind, 0.0, None), ("transpose", None, None)]
    assert plan.steps[0].params["permutation"] == (0, 2, 3, 1)
    assert plan.steps[-1].params["permutation"] == (0, 3, 1, 2)
    assert plan.steps[-1].shape == (2, 8, 8, 8)


def test_bias_batch_norm_and_activation_belong_to_the_kernel():
    plan = linen(lambda x: nn.relu6(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x))))
    (step,) = plan.steps
    assert (step.kind, step.lo, step.hi) == ("conv", 0.0, 6.0)
    assert [op.kind for op, _ in step.constant.chain] == ["add", "sub", "mul", "add"]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.relu, (0.0, None)),
        (nn.relu6, (0.0, 6.0)),
        (lambda x: jnp.maximum(x, 0), (0.0, None)),
        (lambda x: jnp.maximum(0.0, x), (0.0, None)),
        (lambda x: jnp.clip(x, 0, 6), (0.0, 6.0)),
        (lambda x: jnp.clip(x, -1, 1), (-1.0, 1.0)),
        (lambda x: jnp.maximum(jnp.minimum(x, 6.0), 0.0), (0.0, 6.0)),
        (lambda x: lax.clamp(-1.0, x, 1.0), (-1.0, 1.0)),
        (lambda x: jnp.minimum(nn.relu(x), 6.0), (0.0, 6.0)),
        (lambda x: nn.relu(nn.relu(x)), (0.0, None)),
    ],
)
@pytest.mark.parametrize("kind", ["conv", "dense", "add", "mul"])
def test_activations_are_fused(kind, activation, expected):
    layers = {
        "conv": lambda x: nn.Conv(4, (1, 1))(x),
        "dense": lambda x: nn.Dense(4)(x),
        "add": lambda x: x + x[:, ::-1],
        "mul": lambda x: x * x,
    }
    if kind == "add":
        plan = plan_of(lambda v, x, y: activation(x + y), IMAGE, IMAGE)
    else:
        plan = linen(lambda x: activation(layers[kind](x)))
    assert bounds(plan) == [(kind, *expected)]


def test_an_activation_is_not_fused_where_its_input_is_read_twice():
    def body(x):
        y = nn.Conv(4, (1, 1))(x)
        return nn.relu(y) + y

    plan = linen(body)
    assert bounds(plan) == [("conv", None, None), ("relu", 0.0, None), ("add", None, None)]
    assert plan.ranges[plan.steps[1].name] == plan.steps[0].name


def test_an_activation_of_a_returned_value_is_not_fused():
    plan = linen(lambda x: (lambda y: (y, nn.relu(y)))(nn.Conv(4, (1, 1))(x)))
    assert kinds(plan) == ["conv", "relu"]
    assert list(plan.outputs) == [step.name for step in plan.steps]


@pytest.mark.parametrize(
    ("clamp", "expected"),
    [
        (nn.relu, ("relu", 0.0, None)),
        (lambda x: jnp.clip(x, -1, 1), ("relu", -1.0, 1.0)),
        (lambda x: jnp.clip(x, 0.25, 0.75), ("clamp", 0.25, 0.75)),
        (lambda x: jnp.maximum(x, 0.5), ("clamp", 0.5, None)),
        (lambda x: jnp.minimum(jnp.minimum(x, 2.0), 1.0), ("clamp", None, 1.0)),
    ],
)
def test_a_lone_clamp_has_any_bounds_and_its_input_s_range(clamp, expected):
    plan = plan_of(lambda v, x: clamp(x))
    assert bounds(plan) == [expected]
    assert plan.observed == ("input_0",)


def test_an_activation_that_fuses_leaves_the_rest_of_a_clamp():
    plan = linen(lambda x: jnp.clip(nn.Conv(4, (1, 1))(x), 0.0, 1.0))
    assert bounds(plan) == [("conv", 0.0, None), ("clamp", None, 1.0)]


def test_elementwise_of_two_tensors():
    plan = plan_of(lambda v, x, y: (x + y) * (x - y), IMAGE, IMAGE)
    assert kinds(plan) == ["add", "sub", "mul"]
    assert plan.steps[2].inputs == (plan.steps[0].name, plan.steps[1].name)
    assert plan.observed == ("input_0", "input_1", *(step.name for step in plan.steps))


@pytest.mark.parametrize(
    ("fn", "kind", "constant"),
    [
        (lambda v, x: x + 2.0, "add", 2.0),
        (lambda v, x: 2.0 + x, "add", 2.0),
        (lambda v, x: x - 2.0, "add", -2.0),
        (lambda v, x: x * 2.0, "mul", 2.0),
        (lambda v, x: x / 4.0, "mul", 0.25),
        (lambda v, x: x * v["c"][None, None, None], "mul", [1.0, 2.0, 3.0, 4.0]),
        (lambda v, x: x - v["c"][None, None, None], "add", [-1.0, -2.0, -3.0, -4.0]),
    ],
)
def test_elementwise_with_a_constant(fn, kind, constant):
    from compressjax.quant import steps

    variables = {"c": jnp.arange(1.0, 5.0)}
    plan = plan_of(fn, variables=variables)
    (step,) = plan.steps
    assert (step.kind, step.inputs) == (kind, ("input_0",))
    value = steps.operands(plan, variables)[step.name].value
    np.testing.assert_allclose(
        np.broadcast_to(value, (2, 8, 8, 4))[0, 0, 0], np.resize(constant, 4)
    )


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), (1,), (3,), (1, 2, 3)])
def test_means(axes, keepdims):
    plan = plan_of(lambda v, x: x.mean(axes, keepdims=keepdims))
    (step,) = plan.steps
    assert dict(step.params) == {"axes": axes, "keepdims": keepdims}
    assert step.shape == np.zeros(IMAGE).mean(axes, keepdims=keepdims).shape


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (lambda x: nn.max_pool(x, (2, 2), (2, 2)), [("max_pool", "VALID")]),
        (lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"), [("max_pool", "SAME")]),
        (
            lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
            [("pad", None), ("max_pool", "VALID")],
        ),
        (lambda x: nn.avg_pool(x, (2, 2), (2, 2)), [("avg_pool", "VALID")]),
        (lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"), [("pad", None), ("avg_pool", "VALID")]),
        (
            lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False),
            [("avg_pool", "SAME")],
        ),
    ],
)
def test_pools_share_the_range_of_their_input(pool, expected):
    plan = plan_of(lambda v, x: pool(x))
    found = [
        (step.kind, None if step.kind == "pad" else step.params["padding"]) for step in plan.steps
    ]
    assert found == expected
    assert plan.observed == ("input_0",)
    for step in plan.steps:
        if step.kind == "pad":
            assert step.params["lowest"] == (expected[-1][0] == "max_pool")


def test_moves_share_the_range_of_their_input():
    def fn(v, x):
        left, right = jnp.split(x, 2, axis=-1)
        y = jnp.transpose(right, (0, 2, 1, 3))[:, ::2, 1:5, None]
        z = jnp.pad(left.reshape(2, 4, 16, 2), ((0, 0), (1, 0), (0, 0), (0, 0)))
        return y.squeeze(3), z

    plan = plan_of(fn)
    assert set(kinds(plan)) == {"slice", "transpose", "reshape", "pad"}
    assert plan.observed == ("input_0",)
    shapes = {step.name: step.shape for step in plan.steps}
    assert [shapes[name] for name in plan.outputs] == [(2, 4, 4, 2), (2, 5, 16, 2)]


def test_split_becomes_one_slice_for_each_part():
    plan = plan_of(lambda v, x: tuple(jnp.split(x, [1, 3], axis=3)))
    found = [(step.params["starts"][3], step.params["limits"][3]) for step in plan.steps]
    assert found == [(0, 1), (1, 3), (3, 4)]


def test_concatenated_tensors_share_one_range():
    def body(x):
        return jnp.concatenate([nn.Conv(2, (1, 1))(x), x, nn.max_pool(x, (1, 1))], -1)

    plan = linen(body)
    assert len(set(plan.ranges.values())) == 1 and len(plan.observed) == 1


def test_a_fixed_grid_is_stored_anew_before_concatenation():
    plan = plan_of(lambda v, x: jnp.concatenate([jax.nn.sigmoid(x), x, jnp.tanh(x)], -1))
    assert kinds(plan) == ["logistic", "tanh", "requantize", "requantize", "concatenate"]
    joined = plan.steps[-1]
    assert {plan.ranges[name] for name in joined.inputs} == {plan.ranges[joined.name]}
    assert dict(plan.fixed) == {"logistic_0": (1 / 256, -128), "tanh_0": (1 / 128, 0)}
    assert plan.ranges["logistic_0"] == "logistic_0" and len(plan.observed) == 1


def test_a_move_of_a_fixed_grid_keeps_it():
    plan = plan_of(lambda v, x: nn.max_pool(jax.nn.sigmoid(x), (2, 2)).reshape(2, -1))
    assert set(plan.ranges.values()) == {"input_0", "logistic_0"}
    assert plan.ranges[plan.outputs[0]] == "logistic_0"


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (jax.nn.sigmoid, ["logistic"]),
        (jnp.tanh, ["tanh"]),
        (jax.nn.softmax, ["softmax"]),
        (jax.nn.silu, ["logistic", "mul"]),
    ],
)
def test_tables(fn, expected):
    plan = plan_of(lambda v, x: fn(x))
    assert kinds(plan) == expected
    assert plan.steps[0].name in plan.fixed


def test_constant_minus_a_tensor():
    from compressjax.quant import steps

    for fn, constant in ((lambda v, x: 2.0 - x, 2.0), (lambda v, x: -x, 0.0)):
        plan = plan_of(fn)
        (step,) = plan.steps
        assert step.kind == "sub" and step.params["reversed"]
        operand = steps.operands(plan, {})[step.name].value
        assert operand.item() == constant
        assert steps.real_step(step, [jnp.float32(3.0)], [operand]).item() == constant - 3.0


def test_what_is_computed_already_is_no_step():
    plan = plan_of(lambda v, x: (nn.sigmoid(x) + x**3) * (jnp.square(x) - nn.sigmoid(x)))
    assert kinds(plan) == ["logistic", "mul", "mul", "add", "sub", "mul"]


def test_neutral_constants_are_no_steps():
    plan = plan_of(lambda v, x: ((x - jnp.zeros((1, 1, 1, 4))) * 1.0 + 0.0) / 1.0 + 2.0)
    assert [(step.kind, step.inputs) for step in plan.steps] == [("add", ("input_0",))]


@pytest.mark.parametrize(
    ("fn", "kind", "params"),
    [
        (nn.gelu, "gelu", {"approximate": True}),
        (lambda x: nn.gelu(x, approximate=False), "gelu", {"approximate": False}),
        (lambda x: x * 0.5 * (1 + lax.erf(x / 2**0.5)), "gelu", {"approximate": False}),
        (
            lambda x: 0.5 * x * (1 + jnp.tanh(0.7978846 * x * (1 + 0.044715 * x * x))),
            "gelu",
            {"approximate": True},
        ),
        (nn.elu, "elu", {}),
        (nn.celu, "elu", {}),
        (nn.leaky_relu, "leaky_relu", {"slope": 0.01}),
        (lambda x: jnp.maximum(x, 0.25 * x), "leaky_relu", {"slope": 0.25}),
        (lambda x: jnp.maximum(x, -x), "leaky_relu", {"slope": -1.0}),
        (jnp.abs, "leaky_relu", {"slope": -1.0}),
        (jnp.exp, "exp", {}),
        (jnp.log, "log", {}),
        (jnp.sqrt, "sqrt", {}),
        (lax.rsqrt, "rsqrt", {}),
        (lambda x: 1 / jnp.sqrt(x), "rsqrt", {}),
        (jnp.square, "mul", {}),
    ],
)
def test_functions_are_one_step_however_they_are_written(fn, kind, params):
    plan = plan_of(lambda v, x: fn(x))
    (step,) = plan.steps
    assert (step.kind, step.shape) == (kind, IMAGE)
    assert dict(step.params) == pytest.approx(params)
    assert plan.observed == ("input_0", step.name)


def test_a_function_is_recognised_in_half_precision():
    plan = plan_of(lambda v, x: nn.gelu(x.astype(jnp.bfloat16)).astype(jnp.float32))
    assert kinds(plan) == ["gelu"]


def test_a_clamp_far_out_is_not_overlooked():
    plan = plan_of(lambda v, x: jnp.maximum(jnp.clip(0.1 * x, -20.0, 20.0), x))
    assert kinds(plan) == ["mul", "clamp", "maximum"]


def test_a_function_that_is_read_halfway_is_left_in_parts():
    plan = plan_of(lambda v, x: (lambda h: (x * h, h))(jnp.tanh(x)))
    assert kinds(plan) == ["tanh", "mul"]


def test_a_deep_residual_network_takes_no_time_per_path():
    def fn(v, x):
        for _ in range(32):  # 2**32 paths
            x = x + nn.gelu(0.5 * x)
        return x

    assert kinds(plan_of(fn, (1, 4))).count("gelu") == 32


@pytest.mark.parametrize(("exponent", "products"), [(2, 1), (3, 2), (4, 2), (7, 4)])
def test_whole_powers_are_products(exponent, products):
    from compressjax.quant import steps

    plan = plan_of(lambda v, x: nn.relu(x**exponent))
    assert kinds(plan) == ["mul"] * products
    assert (plan.steps[-1].lo, plan.steps[-1].name) == (0.0, "integer_pow_0")
    real = {"input_0": jnp.float32(1.5)}
    for step in plan.steps:
        real[step.name] = steps.real_step(step, [real[name] for name in step.inputs], [])
    assert real["integer_pow_0"] == 1.5**exponent


def test_the_larger_of_two_tensors_shares_their_range():
    plan = plan_of(lambda v, x, y: jnp.minimum(jnp.maximum(x, y), nn.sigmoid(x)), IMAGE, IMAGE)
    assert kinds(plan) == ["maximum", "logistic", "requantize", "minimum"]
    assert len(plan.observed) == 1


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: nn.LayerNorm()(x),
        lambda x: nn.LayerNorm(use_fast_variance=False)(x),
        lambda x: nn.LayerNorm(reduction_axes=(1, 2, 3))(x),
        lambda x: nn.InstanceNorm()(x),
    ],
)
def test_norms_are_placed_in_the_form_that_int8_survives(norm):
    plan = linen(norm)
    assert kinds(plan) == "mean sub mul mean add rsqrt mul mul add".split()
    mean, centred, square, variance, _, _, _, scaled, _ = plan.steps
    assert mean.params == variance.params and mean.params["keepdims"]
    assert centred.inputs == ("input_0", mean.name)
    assert square.inputs == (centred.name, centred.name)
    assert centred.name in scaled.inputs


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x.var((1, 2)), ["mean", "sub", "mul", "mean", "reshape"]),
        (lambda x: x.std(-1, keepdims=True), ["mean", "sub", "mul", "mean", "sqrt"]),
        (jax.nn.standardize, ["mean", "sub", "mul", "mean", "add", "rsqrt", "mul"]),
        (
            lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3),
            ["mul", "mean", "add", "rsqrt", "mul"],
        ),
        (lambda x: (x * x).mean(-1) - 2 * x.mean(-1), ["mul", "mean", "mean", "mul", "sub"]),
    ],
)
def test_variances(fn, expected):
    plan = plan_of(lambda v, x: fn(x))
    assert kinds(plan) == expected
    assert plan.steps[-1].shape == fn(np.ones(IMAGE, "f")).shape


def test_a_mean_of_squares_that_is_read_elsewhere_is_kept():
    def fn(v, x):
        squares = (x * x).mean(-1)
        return squares, squares - x.mean(-1) ** 2

    plan = plan_of(fn)
    assert kinds(plan).count("mean") == 3
    assert {step.shape for step in plan.steps if step.name in plan.outputs} == {IMAGE[:-1]}


def test_hard_swish_is_made_of_a_clamp_and_two_products():
    plan = plan_of(lambda v, x: x * jax.nn.relu6(x + 3.0) / 6.0)
    assert bounds(plan)[0] == ("add", 0.0, 6.0)
    assert kinds(plan) == ["add", "mul", "mul"]


@pytest.mark.parametrize("keepdims", [True, False])
def test_squeeze_and_excite_broadcasts_in_the_product(keepdims):
    def body(x):
        gate = nn.sigmoid(nn.Dense(4)(x.mean((1, 2), keepdims=keepdims)))
        return x * (gate if keepdims else gate[:, None, None])

    plan = linen(body)
    assert kinds(plan) == ["mean", "dense", "logistic", *["reshape"] * (not keepdims), "mul"]
    shapes = {step.name: step.shape for step in plan.steps}
    assert shapes[plan.steps[-1].inputs[1]] == (2, 1, 1, 4)


def test_casts_and_stop_gradient_are_no_steps():
    plan = plan_of(lambda v, x: lax.stop_gradient(x.astype(jnp.bfloat16)).astype("float32") * 2.0)
    assert kinds(plan) == ["mul"]


def test_an_input_may_be_returned():
    plan = plan_of(lambda v, x: x)
    assert plan.steps == () and plan.outputs == ("input_0",)


def test_names_are_unique():
    plan = linen(lambda x: nn.relu(nn.Conv(4, (3, 3), strides=2, padding=1)(x)).mean((1, 2)))
    assert len({step.name for step in plan.steps}) == len(plan.steps)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda v, x: jnp.cumsum(x, -1), r"'cumsum_0' \(cumsum"),
        (lambda v, x: jnp.sort(x), r"\(sort"),
        (lambda v, x: jnp.sin(x), r"'sin_0' \(sin, output shape \(2, 8, 8, 4\)\).*Rewrite it"),
        (lambda v, x: 1.0 / (x + 2.0), "int8 division fails at run time on a divisor that is zero"),
        (lambda v, x: x / (x + 2.0), "divides by a value that depends on an input"),
        (lambda v, x: jnp.where(x > 1, x, 2 * x), r"'gt_0' \(gt"),
        (lambda v, x: lax.integer_pow(x, -2), "the power -2 is no product"),
        (lambda v, x: nn.selu(x), r"\(gt"),
        (lambda v, x: jax.nn.softmax(x, axis=(1, 2)), "divides by a value"),
        (lambda v, x: jnp.tile(x, (1, 2, 2, 1)), "along several axes"),
        (lambda v, x: x[jnp.array([0, 1]), jnp.array([1, 2])], "gathers in int8 along one axis"),
        (lambda v, x: jnp.take(x, jnp.array([9]), axis=1, mode="fill"), "outside its axis|int8"),
        (
            lambda v, x: lax.conv_general_dilated(
                x, jnp.ones((2, 2, 2, 4)), (1, 1), ((1, 1),) * 2, lhs_dilation=(2, 2),
                dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2,
            ),
            "no groups and no second stride",
        ),
        (lambda v, x: jnp.pad(x, 1, constant_values=1.0), "pads int8 with zeros"),
        (lambda v, x: nn.max_pool(x[..., 0], (2,)), "height and width"),
        (
            lambda v, x: lax.conv_general_dilated(
                x, x[:3, :3, :4, :3], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            "kernel depends on an input",
        ),
        (
            lambda v, x: lax.conv_general_dilated(
                x[:, None], jnp.ones((1, 2, 2, 4, 3)), (1, 1, 1), "SAME",
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            ),
            "3 spatial dimensions",
        ),
        (lambda v, x: x.argmax(-1), "argmax|dtype int32"),
        (lambda v, x: (x * 2.0, jnp.ones(3)), "output 1 does not depend on an input"),
    ],
)  # fmt: skip
def test_what_litert_cannot_run_in_int8_is_refused_by_name(fn, message):
    shape = (4, 8, 8, 4) if "kernel depends" in message else IMAGE
    with pytest.raises(ValueError, match=message):
        plan_of(fn, shape)


def test_int_inputs_are_refused():
    with pytest.raises(ValueError, match=r"input_1 has dtype int32.*float inputs"):
        place(trace(lambda v, x, y: x, {}, jnp.ones(2), jnp.ones(2, "int32"), keep_custom=False))


def test_int_outputs_are_refused():
    with pytest.raises(ValueError, match=r"output 0 has dtype int32, expected a float output"):
        place(trace(lambda v, x: jnp.ones(2, "int32"), {}, jnp.ones(2), keep_custom=False))


def test_refusals_are_all_named_with_their_lines():
    def fn(v, x, count):
        y = jnp.sin(x) + 1.0
        return jax.nn.relu(jnp.sort(y) * y), y.argmax(-1)

    x, count = jax.ShapeDtypeStruct((2, 4), "float32"), jax.ShapeDtypeStruct((2,), "int32")
    found = refusals(trace(fn, {}, x, count, keep_custom=False))
    names = ["input_1", "sin_0", "sort_0", "argmax_0", "output_1"]
    assert [refusal.name for refusal in found] == names
    assert all("test_placement.py" in found[i].source for i in (1, 2, 3))
    with pytest.raises(ValueError, match="input_1 has dtype int32"):
        place(trace(fn, {}, x, count, keep_custom=False))


def test_what_can_be_placed_has_no_refusals():
    def fn(v, x):
        return jax.nn.gelu(nn.avg_pool(x, (2, 2), (2, 2)))

    assert refusals(trace(fn, {}, jnp.ones(IMAGE), keep_custom=False)) == ()


def test_a_part_of_a_split_that_nothing_reads_is_no_step():
    plan = plan_of(lambda v, x: jnp.split(x, [1, 3], axis=-1)[1] + 1.0)
    assert kinds(plan) == ["slice", "add"]
    assert plan.steps[0].params["starts"] == (0, 0, 0, 1)
