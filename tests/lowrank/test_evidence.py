"""Moments equal sums over patches that NumPy takes, and make decompositions fit the data better."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import lowrank
from tests.support import lowrank_oracles as oracles

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(2, 6, 5, 4)).astype("f")


def conv(*, strides=(1, 1), pads=((1, 1), (1, 1)), dilation=(1, 1), groups=1, layout="NHWC"):
    def fn(v, x):
        return jax.lax.conv_general_dilated(
            x, v["w"], strides, pads, rhs_dilation=dilation, feature_group_count=groups,
            dimension_numbers=(layout, "HWIO", layout),
        )  # fmt: skip

    return fn


CONVS = {
    "same": {},
    "strided": {"strides": (2, 1)},
    "dilated": {"dilation": (1, 2)},
    "valid": {"pads": ((0, 0), (0, 0))},
    "grouped": {"groups": 2},
    "asymmetric": {"pads": ((0, 1), (2, 0)), "strides": (2, 2)},
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_moments_equal_sums_over_numpy_patches(name, layout):
    how = {"strides": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    how |= CONVS[name]
    kernel = RNG.normal(size=(3, 2, 4 // how["groups"], 6)).astype("f")
    x = IMAGE if layout == "NHWC" else IMAGE.transpose(0, 3, 1, 2)
    seen = lowrank.observe(conv(**how, layout=layout), {"w": kernel}, [x], patches=True)["w"]
    rows = oracles.patches(IMAGE, (3, 2), **how)
    weights = kernel.reshape(-1, how["groups"], 6 // how["groups"]).astype(np.float64)
    outputs = np.einsum("rgi,igo->rgo", rows, weights)
    inputs = IMAGE.reshape(-1, how["groups"], 4 // how["groups"]).astype(np.float64)
    for found, of in ((seen.patches, rows), (seen.outputs, outputs), (seen.inputs, inputs)):
        assert found.dtype == np.float64
        expected = np.einsum("rgi,rgj->gij", of, of)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_patches_times_weights_are_the_outputs_of_a_transposed_convolution():
    def fn(v, x):
        return jax.lax.conv_transpose(x, v["w"], (2, 2), "SAME")

    kernel = RNG.normal(size=(3, 3, 4, 5)).astype("f")
    seen = lowrank.observe(fn, {"w": kernel}, [IMAGE], patches=True)["w"]
    flat = kernel.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(flat.T @ seen.patches[0] @ flat, seen.outputs[0], rtol=1e-3)


def test_projections_with_head_axes_and_kernels_on_the_left():
    x = RNG.normal(size=(2, 7, 3, 4)).astype("f")
    kernel = RNG.normal(size=(3, 4, 5, 2)).astype("f")
    rows = x.reshape(-1, 12).astype(np.float64)
    outputs = rows @ kernel.reshape(12, 10).astype(np.float64)
    for fn in (
        lambda v, x: jnp.einsum("btij,ijkl->btkl", x, v["w"]),
        lambda v, x: jax.lax.dot_general(v["w"], x, (((0, 1), (2, 3)), ((), ()))),
    ):
        seen = lowrank.observe(fn, {"w": kernel}, [x])["w"]
        assert seen.patches is None
        np.testing.assert_allclose(seen.inputs[0], rows.T @ rows, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(seen.outputs[0], outputs.T @ outputs, rtol=1e-4, atol=1e-3)


def test_sums_run_over_batches_and_uses():
    kernel = RNG.normal(size=(3, 3)).astype("f")
    x, y = (RNG.normal(size=(n, 3)).astype("f") for n in (4, 2))
    seen = lowrank.observe(lambda v, x, y: x @ v["w"] + y.sum() * 0 + (y @ v["w"]).sum(),
                           {"w": kernel}, [(x, y), (2 * x, y[:1])])["w"]  # fmt: skip
    rows = np.concatenate([x, y, 2 * x, y[:1]]).astype(np.float64)
    np.testing.assert_allclose(seen.inputs[0], rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_svd_on_data_is_the_best_of_its_rank_for_the_outputs():
    mixing = RNG.normal(size=(8, 8)) * np.logspace(0, -2, 8)
    x = (RNG.normal(size=(64, 8)) @ mixing).astype("f")
    variables = {"w": RNG.normal(size=(8, 6)).astype("f")}

    def fn(v, x):
        return x @ v["w"]

    moments = lowrank.observe(fn, variables, [x])
    whole = np.asarray(fn(variables, x), np.float64)
    best = np.linalg.norm(whole - oracles.truncated(whole, 2))
    errors = []
    for seen in (moments, None):
        factored = cj.factorize(fn, variables, x, rank=2, moments=seen)
        errors.append(np.linalg.norm(whole - factored.apply(factored.variables, x)))
    assert errors[0] == pytest.approx(best, rel=1e-3)
    assert errors[0] < 0.9 * errors[1]


def test_select_and_bad_data():
    def fn(v, x):
        return x @ v["a"] @ v["b"]

    variables = {"a": np.ones((2, 3), "f"), "b": np.ones((3, 2), "f")}
    x = np.ones((1, 2), "f")
    assert list(lowrank.observe(fn, variables, [x], select="b")) == ["b"]
    with pytest.raises(ValueError, match="there are no batches"):
        lowrank.observe(fn, variables, [])
    with pytest.raises(ValueError, match=r"a: .* not finite in batch 2"):
        lowrank.observe(fn, variables, [x, np.nan * x])
    with pytest.raises(ValueError, match="select"):
        lowrank.observe(fn, variables, [x], select="nothing")
