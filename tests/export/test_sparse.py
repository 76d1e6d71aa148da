"""Sparse constants unpack to the same weights and give the same results, in a smaller file."""

import copy
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer, ops, run, sparse, sparsify, tflite, validate, verify
from tests.support import coding_oracles

VIAS = ("jax2tf", "litert")
FORMS = [sparse.Form(axis, block) for axis in (0, 1) for block in (1, 4)]


def _conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _apply(variables, x):
    p = variables["params"]
    x = jnp.maximum(_conv(x, p["a"]) + p["bias"].reshape(1, 1, 1, -1), 0)
    x = jnp.maximum(_conv(x, p["b"]), 0)
    return x.mean((1, 2)) @ p["c"]


def _pruned(key, shape, sparsity):
    weight = jax.random.normal(key, shape) * 0.2
    return jnp.where(jax.random.uniform(jax.random.fold_in(key, 1), shape) < sparsity, 0, weight)


@functools.cache
def _variables(sparsity=0.9):
    keys = jax.random.split(jax.random.key(3), 4)
    return {
        "params": {
            "a": _pruned(keys[0], (3, 3, 16, 32), sparsity),
            "b": _pruned(keys[1], (1, 1, 32, 320), sparsity),
            "c": _pruned(keys[2], (320, 12), sparsity),
            "bias": jax.random.normal(keys[3], (32,)),
        }
    }


IMAGES = np.asarray(jax.random.normal(jax.random.key(9), (3, 6, 6, 16)))


@functools.cache
def _quantized():
    q = cj.quantize(_apply)
    return q, q.calibrate(_variables(), [jnp.asarray(IMAGES)])


@functools.cache
def _file(kind, via="litert", sparsity=0.9):
    if kind == "float":
        return tflite(_apply, _variables(sparsity), jnp.asarray(IMAGES[:1]), via=via)
    q, variables = _quantized()
    return tflite(q, variables, jnp.asarray(IMAGES[:1]), via=via)


def _constants(model):
    unpacked = flatbuffer.read(model)
    found = {}
    for tensor in unpacked.subgraphs[0].tensors:
        array = sparse.dense(unpacked, tensor)
        if array is not None and array.ndim > 1:
            found[flatbuffer.text(tensor.name).removesuffix("/sparse")] = array
    return found


@hypothesis.given(st.sampled_from(FORMS), st.integers(0, 2**32 - 1), st.floats(0, 1))
@hypothesis.settings(max_examples=30, deadline=None)
def test_packed_weight_is_that_of_the_format(form, seed, sparsity):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (8, 12), np.int8) * (rng.random((8, 12)) >= sparsity)
    packed = sparse.pack(weight.astype(np.int8), form)
    parameters = sparse._parameters(weight.shape, packed)
    found = coding_oracles.unpack(parameters, weight.shape, packed.values)
    np.testing.assert_array_equal(found, weight)
    assert len(packed.values) * form.block >= np.count_nonzero(weight)


@pytest.mark.parametrize("via", VIAS)
def test_pruned_weights_are_code_zero(via):
    files = _constants(_file("int8", via))
    shapes = {"a": (32, 3, 3, 16), "b": (320, 1, 1, 32), "c": (12, 320)}
    for name, shape in shapes.items():
        weight = np.moveaxis(np.asarray(_variables()["params"][name]), -1, 0)
        (codes,) = [codes for codes in files.values() if codes.shape == shape]
        assert codes.dtype == np.int8
        assert (codes[weight.reshape(shape) == 0] == 0).all()
    unpacked = flatbuffer.read(_file("int8", via))
    for tensor in unpacked.subgraphs[0].tensors:
        if flatbuffer.text(tensor.name).endswith("/weight"):
            assert not np.any(tensor.quantization.zeroPoint)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_sparse_file_is_smaller_and_computes_the_same(kind):
    model = _file(kind)
    smaller = sparsify(model)
    assert len(smaller) < (0.35 if kind == "float" else 0.85) * len(model)
    np.testing.assert_array_equal(run(smaller, IMAGES), run(model, IMAGES))
    before, after = _constants(model), _constants(smaller)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    assert ops(smaller).count("DENSIFY") == (3 if kind == "float" else 2)
    assert [op for op in ops(smaller) if op != "DENSIFY"] == ops(model)


def test_every_sparse_tensor_is_what_the_format_means():
    model = flatbuffer.read(sparsify(_file("float")))
    weights = _constants(_file("float"))
    tensors = [t for t in model.subgraphs[0].tensors if t.sparsity is not None]
    assert len(tensors) == 3
    for tensor in tensors:
        values = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.float32)
        found = coding_oracles.unpack(tensor.sparsity, tuple(tensor.shape), values)
        name = flatbuffer.text(tensor.name).removesuffix("/sparse")
        np.testing.assert_array_equal(found, weights[name])


def test_exporter_option_and_parity():
    q, variables = _quantized()
    model = tflite(q, variables, jnp.asarray(IMAGES[:1]), via="litert", sparse=True)
    assert model == sparsify(_file("int8")) == sparsify(model)
    parity = verify(model, q, variables, IMAGES)
    assert (parity.max_lsb, parity.mismatch_fraction) == (0, 0)
    assert len(parity.layers) == len(verify(_file("int8"), q, variables, IMAGES).layers)


def test_dense_weights_stay():
    model = _file("float", sparsity=0.0)
    assert sparsify(model) is model


def test_blocks_and_wide_rows_run():
    """Blocks, indices of 16 bits and a kernel whose short axis is the first."""
    rng = np.random.default_rng(1)
    blocks = np.repeat(rng.random((700, 10)) < 0.05, 8, axis=1) * rng.normal(size=(700, 80))
    rows = (rng.random((80, 300)) < 0.03) * rng.normal(size=(80, 300))
    variables = {"a": jnp.asarray(blocks, jnp.float32), "b": jnp.asarray(rows, jnp.float32)}
    x = rng.normal(size=(2, 700)).astype(np.float32)
    model = tflite(lambda v, x: x @ v["a"] @ v["b"], variables, jnp.asarray(x), via="litert")
    smaller = sparsify(model)
    forms = [sparse.smallest(np.asarray(v).T).form for v in variables.values()]
    assert forms[0] == sparse.Form(0, 8) and forms[1].block == 1
    assert len(smaller) < 0.1 * len(model)
    np.testing.assert_array_equal(run(smaller, x), run(model, x))


def test_negative_zero_is_a_zero():
    weight = np.zeros((4, 8), np.float32)
    weight[1, 2], weight[3, 4] = -0.0, np.nan
    assert len(sparse.pack(weight, sparse.Form(1, 1)).values) == 1


@pytest.mark.parametrize("form", [sparse.Form(2, 1), sparse.Form(-1, 1), sparse.Form(1, 5)])
def test_form_that_does_not_fit(form):
    with pytest.raises(ValueError, match=r"shape \[4, 8\] has no blocks"):
        sparse.pack(np.zeros((4, 8), np.int8), form)


def test_not_a_model():
    with pytest.raises(TypeError, match="ndarray"):
        sparsify(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"damaged \.tflite"):
        sparsify(_file("float")[:-4000])


def _index(tensor, model):
    level = tensor.sparsity.dimMetadata[len(tensor.shape) - 1]
    level.arrayIndices.values = level.arrayIndices.values.copy()
    level.arrayIndices.values[0] = 255


def _segments(tensor, model):
    level = tensor.sparsity.dimMetadata[len(tensor.shape) - 1]
    level.arraySegments.values = level.arraySegments.values[::-1].copy()


def _order(tensor, model):
    tensor.sparsity.traversalOrder = np.zeros(len(tensor.shape), np.int32)


def _size(tensor, model):
    tensor.sparsity.dimMetadata[0].denseSize = 10_000


def _block(tensor, model):
    tensor.sparsity.blockMap = np.array([0], np.int32)


def _data(tensor, model):
    model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:-1]


def _no_data(tensor, model):
    model.buffers[tensor.buffer].data = None


def _no_densify(tensor, model):
    for operator in model.subgraphs[0].operators:
        made = {int(o.outputs[0]): int(o.inputs[0]) for o in model.subgraphs[0].operators}
        if flatbuffer.op_name(model, operator) != "DENSIFY":
            first, second, *rest = operator.inputs
            operator.inputs = [first, made.get(int(second), second), *rest]
            return


def _other_shape(tensor, model):
    operators = model.subgraphs[0].operators
    densify = next(op for op in operators if flatbuffer.op_name(model, op) == "DENSIFY")
    unpacked = copy.copy(model.subgraphs[0].tensors[densify.outputs[0]])
    unpacked.shape = np.array([1, *unpacked.shape], np.int32)
    model.subgraphs[0].tensors[densify.outputs[0]] = unpacked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_index, "indices that leave axis"),
        (_segments, "indices that leave axis"),
        (_order, "the order"),
        (_size, "expected"),
        (_block, "blocked axes"),
        (_data, "needs .* bytes"),
        (_no_data, "no data"),
        (_no_densify, "without a DENSIFY"),
        (_other_shape, "another type or shape"),
    ],
)
def test_damaged_sparse_constants_are_named(change, message):
    model = flatbuffer.read(sparsify(_file("float")))
    sparse_tensors = [t for t in model.subgraphs[0].tensors if t.sparsity is not None]
    tensor = next(t for t in sparse_tensors if tuple(t.shape) == (32, 3, 3, 16))
    change(tensor, model)
    with pytest.raises(ValueError, match=message):
        validate(flatbuffer.write(model))


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=100, deadline=None)
def test_no_change_of_bytes_escapes_as_another_error(data):
    damaged = bytearray(_small())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        validate(bytes(damaged))
    except ValueError as error:
        assert "tflite" in str(error) or "not supported" in str(error)


@functools.cache
def _small():
    kernel = jnp.eye(32)
    model = tflite(lambda v, x: x @ v, kernel, jnp.ones((1, 32)), via="litert")
    return sparsify(model)
