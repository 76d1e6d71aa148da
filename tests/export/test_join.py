"""Files that are put together compute what their parts compute, one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import compressjax as cj
from compressjax.export import flatbuffer

X = np.asarray(jax.random.normal(jax.random.key(0), (3, 4, 4, 2)))


def _features(variables, x):
    y = jax.lax.conv_general_dilated(
        x, variables["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y)


def _network(variables, x):
    return _features(variables, x).mean((1, 2)) @ variables["dense"]


def _head(variables, x):
    return x.mean((1, 2)) @ variables["dense"]


@functools.cache
def _variables():
    keys = jax.random.split(jax.random.key(1))
    return {
        "conv": jax.random.normal(keys[0], (3, 3, 2, 8)),
        "dense": jax.random.normal(keys[1], (8, 5)),
    }


@functools.cache
def _file(fn, int8=False, ends=False):
    x = X[:1] if fn is not _head else np.asarray(_features(_variables(), X[:1]))
    if not int8:
        return cj.export.tflite(fn, _variables(), x, via="litert")
    q = cj.quantize(fn)
    qv = q.calibrate(_variables(), [X if fn is not _head else _features(_variables(), X)])
    return cj.export.tflite(q, qv, x, via="litert", int8_io=ends)


def test_a_chain_of_parts_is_the_whole():
    chained = cj.export.chain(_file(_features), _file(_head))
    np.testing.assert_allclose(
        cj.export.run(chained, X), cj.export.run(_file(_network), X), rtol=1e-5, atol=1e-6
    )
    signature = flatbuffer.read(chained).signatureDefs[0]
    names = [flatbuffer.text(end.name) for end in [*signature.inputs, *signature.outputs]]
    assert names == ["input_0", "output_0"]
    assert cj.export.chain(_file(_features), _file(_head)) == chained


def test_a_chain_of_int8_parts_gives_their_codes():
    parts = [_file(fn, int8=True) for fn in (_features, _head)]
    expected = cj.export.run(parts[1], cj.export.run(parts[0], X))
    np.testing.assert_array_equal(cj.export.run(cj.export.chain(*parts), X), expected)


def test_a_round_trip_through_floats_disappears():
    same = _file(_features, int8=True)
    q = cj.quantize(lambda v, x: jax.nn.relu(x))
    x = np.asarray(cj.export.run(same, X))
    before = cj.export.tflite(q, q.calibrate({}, [x]), x[:1], via="litert")
    chained = cj.export.chain(before, before)
    np.testing.assert_array_equal(cj.export.run(chained, x), cj.export.run(before, x))
    ops = cj.export.ops(chained)
    assert ops.count("QUANTIZE") + ops.count("DEQUANTIZE") <= 3


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"file 0 .* \[1, 5\], file 1 .* \[1, 4, 4, 2\]"):
        cj.export.chain(_file(_network), _file(_network))
    with pytest.raises(ValueError, match=r"puts out int8 .*scale.* takes float32"):
        cj.export.chain(_file(_features, int8=True, ends=True), _file(_head))
    with pytest.raises(ValueError, match="at least one"):
        cj.export.chain()


def test_signatures_share_their_constants():
    parts = {"serve": _file(_network), "features": _file(_features)}
    merged = cj.export.merge(parts)
    assert len(merged) < sum(map(len, parts.values())) - _variables()["conv"].nbytes
    for name, part in parts.items():
        expected = cj.export.run(part, X[:1])
        np.testing.assert_array_equal(cj.export.run(merged, X[:1], signature=name), expected)
        interpreter = Interpreter(model_content=merged)
        found = interpreter.get_signature_runner(name)(input_0=X[:1])
        np.testing.assert_array_equal(found["output_0"], expected)
    np.testing.assert_array_equal(
        cj.export.run(merged, X), cj.export.run(parts["serve"], X)
    )  # the first is what others take
    with pytest.raises(ValueError, match=r"no signature 'train', only \['features', 'serve'\]"):
        cj.export.run(merged, X, signature="train")
    with pytest.raises(ValueError, match="file 0 of the chain has 2 graphs"):
        cj.export.chain(merged)


def test_quantized_signatures_run_too():
    merged = cj.export.merge(
        {"serve": _file(_network, int8=True), "features": _file(_features, int8=True)}
    )
    for name, fn in (("serve", _network), ("features", _features)):
        expected = cj.export.run(_file(fn, int8=True), X)
        np.testing.assert_array_equal(cj.export.run(merged, X, signature=name), expected)


@pytest.mark.parametrize("via", ["jax2tf", "litert"])
@pytest.mark.parametrize("int8", [False, True])
def test_an_open_batch_takes_any_number_of_rows(via, int8):
    def fn(variables, x):
        y = _features(variables, x).reshape(x.shape[0], -1, 8)
        return y[:, 3] @ variables["dense"]

    model, variables = fn, _variables()
    if int8:
        model = cj.quantize(fn)
        variables = model.calibrate(variables, [X])
    file = cj.export.tflite(model, variables, X[:1], via=via)
    opened = cj.export.dynamic_batch(file)
    np.testing.assert_allclose(
        cj.export.run(opened, X), cj.export.run(file, X), atol=0 if int8 else 1e-5
    )
    interpreter = Interpreter(model_content=opened)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (2, 4, 4, 2))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X[:2])
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, cj.export.run(file, X[:2]), atol=0 if int8 else 1e-5)


def test_an_operation_that_moves_rows_is_refused():
    def fn(variables, x):
        return jnp.flip(x.reshape(2, 4).T.reshape(1, 8) + variables, 1)

    file = cj.export.tflite(fn, jnp.zeros((1, 8)), jnp.ones((1, 8)), via="litert")
    with pytest.raises(ValueError, match="differs from that of the rows one by one"):
        cj.export.dynamic_batch(file)
