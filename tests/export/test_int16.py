"""Files of 16-bit activations: integers inside, and equal to the lattice."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer

VIAS = ("jax2tf", "litert")


class Net(nn.Module):
    """Convolutions with and without groups, a sum of two, a pool, a mean and a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        y = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.max_pool(nn.Conv(8, (1, 1))(y) + x, (2, 2), (2, 2))
        return nn.Dense(5)(x.mean((1, 2)))


@functools.cache
def _exported(via, ends=False):
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    variables = Net().init(jax.random.key(1), x)
    q = cj.quantize(Net().apply, cj.quant.int16x8())
    qv = q.calibrate(variables, [x])
    return q, qv, x, cj.export.tflite(q, qv, x[:1], via=via, int8_io=ends)


def _tensors(model):
    unpacked = flatbuffer.read(model)
    graph = unpacked.subgraphs[0]
    made = {int(i) for operator in graph.operators for i in operator.outputs}
    return unpacked, graph, made


@pytest.mark.parametrize("via", VIAS)
def test_no_code_differs(via):
    q, qv, x, file = _exported(via)
    parity = cj.export.verify(file, q, qv, np.asarray(x))
    assert not any(layer.differing for layer in parity.layers)
    assert len(parity.layers) >= 7


@pytest.mark.parametrize("via", VIAS)
def test_sixteen_bits_are_nearer_to_the_weights_alone_than_eight(via):
    """What is left is clipping: ranges were observed before the weights were rounded."""
    q, qv, x, file = _exported(via)
    variables = {name: value for name, value in qv.items() if name != "quant"}
    weights = cj.quantize(Net().apply, cj.quant.weight_only())
    expected = np.asarray(weights.apply(variables, x))
    int8 = cj.quantize(Net().apply)
    eight = np.asarray(int8.apply(int8.calibrate(variables, [x]), x))
    error = np.abs(cj.export.run(file, np.asarray(x)) - expected).max()
    assert 3 * error < np.abs(eight - expected).max()


@pytest.mark.parametrize("via", VIAS)
def test_every_tensor_inside_is_int16(via):
    unpacked, graph, made = _tensors(_exported(via)[3])
    kinds = [flatbuffer.dtype(graph.tensors[i]).name for i in made]
    assert set(kinds) == {"int16", "float32"} and kinds.count("float32") == 1
    for i in made:
        grid = graph.tensors[i].quantization
        if flatbuffer.dtype(graph.tensors[i]) == np.int16:
            assert not np.any(grid.zeroPoint)
    weights = [
        t for t in graph.tensors if len(t.shape) > 1 and unpacked.buffers[t.buffer].data is not None
    ]
    assert {flatbuffer.dtype(t).name for t in weights} == {"int8"}
    biases = [t for t in graph.tensors if flatbuffer.text(t.name).endswith("/bias")]
    assert {flatbuffer.dtype(t).name for t in biases} == {"int64"}


class Attention(nn.Module):
    """What a transformer needs, and the functions that LiteRT has tables for."""

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(6)(x))
        weights = nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x) * 0.4)
        x = nn.leaky_relu(x + jnp.einsum("bqk,bkd->bqd", weights, x), 0.2)
        return jnp.log((jnp.exp(nn.sigmoid(x)) + nn.tanh(x)).sum(1) + 6.0)


def test_no_code_of_attention_differs():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    variables = Attention().init(jax.random.key(1), x)
    q = cj.quantize(Attention().apply, cj.quant.int16x8())
    qv = q.calibrate(variables, [x])
    file = cj.export.tflite(q, qv, x[:1], via="litert")
    expected = {"GELU", "SOFTMAX", "LEAKY_RELU", "EXP", "LOGISTIC", "TANH", "SUM", "LOG"}
    assert expected <= set(cj.export.ops(file))
    parity = cj.export.verify(file, q, qv, np.asarray(x))
    assert not any(layer.differing for layer in parity.layers) and len(parity.layers) >= 12


def test_the_ends_can_be_int16_too():
    _, _, x, file = _exported("litert", ends=True)
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(cj.export.ops(file))
    expected = cj.export.run(_exported("litert")[3], np.asarray(x))
    np.testing.assert_array_equal(cj.export.run(file, np.asarray(x)), expected)


def test_the_same_bytes_again():
    q, qv, x, file = _exported("litert")
    assert cj.export.tflite(q, qv, x[:1], via="litert") == file


def test_a_dead_channel_keeps_its_bias():
    """Its scale would make a multiplier that LiteRT takes for zero."""

    def fn(variables, x):
        return x @ variables["kernel"] + jnp.broadcast_to(variables["bias"], (x.shape[0], 3))

    kernel = jax.random.normal(jax.random.key(0), (4, 3)) * jnp.array([[1.0, 1e-9, 0.0]])
    variables = {"kernel": kernel, "bias": jnp.array([0.1, 0.5, -0.25])}
    x = jax.random.normal(jax.random.key(1), (8, 4))
    q = cj.quantize(fn, cj.quant.int16x8())
    qv = q.calibrate(variables, [x])
    found = cj.export.run(cj.export.tflite(q, qv, x[:1], via="litert"), np.asarray(x))
    np.testing.assert_allclose(found, q.apply(qv, x), atol=2e-4)


def test_some_tensors_of_another_width_are_refused():
    mixed = {"**/Dense_0/kernel": cj.quant.Activations(8)}
    spec = cj.quant.int16x8()
    spec = spec._replace(activations=(*mixed.items(), *spec.activations))
    q = cj.quantize(Net().apply, spec)
    _, _, x, _ = _exported("litert")
    qv = q.calibrate(Net().init(jax.random.key(1), x), [x])
    with pytest.raises(ValueError, match="16-bit symmetric ones for all"):
        cj.export.tflite(q, qv, x[:1], via="litert")


def test_a_constant_of_zeros_has_the_zero_point_of_the_others():
    def fn(variables, x):
        return jax.nn.relu(x - jnp.broadcast_to(variables["mean"], x.shape)) * 2.0

    x = jax.random.normal(jax.random.key(0), (4, 3))
    q = cj.quantize(fn, cj.quant.int16x8())
    qv = q.calibrate({"mean": jnp.zeros(3)}, [x])
    found = cj.export.run(cj.export.tflite(q, qv, x[:1], via="litert"), np.asarray(x))
    np.testing.assert_allclose(found, fn({"mean": jnp.zeros(3)}, x), atol=1e-3)
