"""Specs: rules by path, formats that LiteRT does not hold, and what freezing says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import quant
from compressjax.quant import grids
from compressjax.quant.spec import layout

VARIABLES = {
    "params": {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (6, 16))},
        "b": {"kernel": jax.random.normal(jax.random.key(1), (16, 4))},
    }
}
X = jax.random.normal(jax.random.key(2), (32, 6))


def fn(variables, x):
    params = variables["params"]
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


def calibrated(spec):
    q = cj.quantize(fn, spec)
    return q, q.calibrate(VARIABLES, [X], observer=quant.min_max())


def oracle_ends(values, bits):
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, np.rint(-(2 ** (bits - 1)) - low / scale)


def oracle_tensor(values, bits):
    scale, zero = oracle_ends(values, bits)
    codes = np.clip(np.rint(values / scale) + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes - zero) * scale


def oracle_kernel(w, bits):
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(0) / largest
    return np.clip(np.rint(w / scale), -largest, largest) * scale


def test_the_first_rule_that_matches_decides_and_the_others_take_the_default():
    spec = quant.uniform(
        weights=4,
        activations=8,
        rules={"**/a/kernel": grids.ternary(), "**/kernel": grids.integer(6)},
    )
    q = cj.quantize(fn, spec)
    found = layout(spec, q.plan(VARIABLES, X))
    assert [grid.name for grid in found.weights.values()] == [
        "ternary per tensor",
        "int6 per channel",
    ]


def test_a_rule_that_matches_nothing_is_an_error():
    q = cj.quantize(fn, quant.int8(weights={"**/c/kernel": grids.integer(4)}))
    qv = cj.quantize(fn).calibrate(VARIABLES, [X])
    with pytest.raises(ValueError, match=r"weights pattern '\*\*/c/kernel' matches none"):
        q.apply(qv, X)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_eight_bit_activations_with_narrow_weights_run_on_the_lattice_and_freeze(bits):
    q, qv = calibrated(quant.uniform(weights=bits, activations=8))
    frozen = q.freeze(qv, X)
    largest = 2 ** (bits - 1) - 1
    for step, path in zip(frozen.steps, ("a", "b"), strict=True):
        (weight,) = step.constants
        assert np.abs(weight.codes).max() == largest
        expected = oracle_kernel(np.asarray(VARIABLES["params"][path]["kernel"], np.float64), bits)
        np.testing.assert_allclose(weight.dequantize(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("weights", "activations"), [(4, 4), (8, 6), (4, 12)])
def test_other_widths_are_simulated_as_fake_quantization_does_it(weights, activations):
    q, qv = calibrated(quant.uniform(weights=weights, activations=activations))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), VARIABLES["params"])
    x = np.asarray(X, np.float64)
    hidden = np.maximum(x @ params["a"]["kernel"], 0.0)
    logits = hidden @ params["b"]["kernel"]
    a, b = (oracle_kernel(params[path]["kernel"], weights) for path in "ab")
    scales = [oracle_ends(values, activations) for values in (x, hidden, logits)]

    def stored(values, grid):
        scale, zero = grid
        half = 2 ** (activations - 1)
        return (np.clip(np.rint(values / scale) + zero, -half, half - 1) - zero) * scale

    expected = stored(stored(np.maximum(stored(x, scales[0]) @ a, 0.0), scales[1]) @ b, scales[2])
    # A value at a tie may fall to either side in float32.
    step = scales[2][0] * 1.01 + scales[1][0] * np.abs(b).max()
    found = np.asarray(q.apply(qv, X))
    assert np.mean(np.abs(found - expected) > 1e-4 * np.abs(expected).max()) < 0.02
    np.testing.assert_allclose(found, expected, atol=step)


def test_what_litert_does_not_hold_is_named_when_it_is_frozen():
    spec = quant.int8(
        weights={"**/a/kernel": grids.codebook(16)},
        activations={"params/b/*": quant.Activations(4)},
    )
    q, qv = calibrated(spec)
    assert np.isfinite(np.asarray(q.apply(qv, X))).all()
    with pytest.raises(ValueError, match="params/a/kernel has the grid 'codebook"):
        q.freeze(qv, X)
    with pytest.raises(ValueError, match="params/b/kernel is stored in 4 bits, affine"):
        cj.export.tflite(q, qv, X[:1], via="litert")


def test_sixteen_bit_activations_are_symmetric_and_their_codes_are_int16():
    q, qv = calibrated(quant.int16x8())
    codes = q.intermediates(qv, X)
    assert {array.dtype for array in codes.values()} == {jnp.dtype("int16")}
    assert 30000 < np.abs(np.asarray(codes["input_0"], np.int32)).max() <= 32767
    error = jnp.abs(q.apply(qv, X) - fn(VARIABLES, X)).max()
    eight, eight_variables = calibrated(quant.int8())
    assert error < jnp.abs(eight.apply(eight_variables, X) - fn(VARIABLES, X)).max()


def test_bfloat16_operands_give_the_same_integers():
    q, qv = calibrated(quant.int8())
    halves = cj.quantize(fn, quant.int8(operands=jnp.bfloat16))
    expected, found = q.intermediates(qv, X), halves.intermediates(qv, X)
    for name, codes in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(codes), err_msg=name)
    gradient, other = (
        jax.grad(lambda v, apply=side.apply: (apply(v, X) ** 2).mean())(qv)["params"]
        for side in (q, halves)
    )
    for path, leaf in cj.tree.paths(gradient).items():
        close = np.asarray(cj.tree.paths(other)[path])
        np.testing.assert_allclose(close, leaf, atol=0.02 * np.abs(leaf).max(), err_msg=path)


def test_weights_alone_are_rounded_and_any_function_can_be():
    def strange(variables, x):
        return jnp.sort(jax.lax.erf(fn(variables, x)), axis=-1)

    q = cj.quantize(strange, quant.weight_only(grids.integer(4)))
    rounded = {
        "params": {
            name: {"kernel": jnp.float32(oracle_kernel(np.asarray(leaf["kernel"]), 4))}
            for name, leaf in VARIABLES["params"].items()
        }
    }
    np.testing.assert_allclose(q.apply(VARIABLES, X), strange(rounded, X), atol=1e-6)
    for part in (q.observe, q.watch, q.plan, q.intermediates):
        with pytest.raises(ValueError, match="only kernels are quantized"):
            part(VARIABLES, X)


def test_dynamic_ranges_are_those_of_each_row():
    q = cj.quantize(lambda v, x: x @ v["params"]["a"]["kernel"], quant.dynamic())
    x = np.array(X) * np.logspace(-3, 3, 32)[:, None].astype(np.float32)
    kernel = oracle_kernel(np.asarray(VARIABLES["params"]["a"]["kernel"], np.float64), 8)
    expected = np.stack([oracle_tensor(row.astype(np.float64), 8) @ kernel for row in x])
    found = np.asarray(q.apply(VARIABLES, x))
    off = np.abs(found - expected) > 1e-4 * np.abs(expected).max(1, keepdims=True)
    assert off.mean() < 0.02  # ties
    assert np.abs(found - expected).max(1).max() < np.abs(x).max()


def test_convolutions_of_any_layout_have_their_kernels_rounded():
    kernel = jax.random.normal(jax.random.key(3), (5, 2, 3, 3))  # OIHW
    x = jax.random.normal(jax.random.key(4), (2, 2, 6, 6))

    def conv(variables, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        kernel = variables["kernel"]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    q = cj.quantize(conv, quant.weight_only())
    flat = np.asarray(kernel, np.float64).reshape(5, -1).T
    rounded = jnp.float32(oracle_kernel(flat, 8).T.reshape(kernel.shape))
    np.testing.assert_allclose(
        q.apply({"kernel": kernel}, x), conv({"kernel": rounded}, x), atol=1e-5
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (lambda: quant.uniform(weights=1, activations=8), "bits"),
        (lambda: quant.uniform(weights=8, activations=17), "activations have 17 bits"),
        (lambda: quant.int8(decay=1.0), "decay is 1.0"),
        (lambda: quant.int8(operands=jnp.float16), "operands are float16"),
    ],
)
def test_bad_settings_are_refused(spec, expected):
    with pytest.raises(ValueError, match=expected):
        spec()
