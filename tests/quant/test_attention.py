"""Networks with products of two activations: through both converters with LiteRT's own codes."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax.export import flatbuffer
from tests.quant.test_topologies import TOKENS, linen


def single_head(x):
    q, k, v = (nn.Dense(8)(x) for _ in range(3))
    weights = nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(8).astype("f"))
    return nn.Dense(4)(weights @ v + x)


def relu_attention(x):
    q, k, v = (nn.Dense(8)(x) for _ in range(3))
    return nn.Dense(4)(nn.relu(q @ k.swapaxes(1, 2)) @ v)


def multi_head(x):
    return nn.MultiHeadDotProductAttention(2, qkv_features=8)(x) + x


def gram(x):
    return jnp.einsum("bti,btj->bij", x, nn.Dense(5)(x))


def symmetric_operand(x):
    return jnp.einsum("bti,bsi->bts", x, nn.tanh(nn.Dense(8)(x)))


def mixed_tokens(x):
    kernel = np.random.default_rng(0).normal(size=(4, TOKENS[1])).astype("f")
    return jnp.einsum("st,btc->bsc", kernel, nn.relu(nn.Dense(5)(x)))


NETWORKS = (single_head, relu_attention, multi_head, gram, symmetric_operand, mixed_tokens)


CASES = [(body, via, 1) for body in NETWORKS for via in ("litert", "jax2tf")]


@functools.cache
def calibrated(body):
    fn, variables, shape = linen(body, TOKENS)
    batch = np.random.default_rng(2).normal(size=(48, *shape[1:])).astype("f")
    q = cj.quantize(fn, cj.quant.int8())
    return q, q.calibrate(variables, [batch], observer=cj.quant.min_max()), batch


@pytest.mark.parametrize(("body", "via", "example"), [*CASES, (multi_head, "litert", 2)])
def test_litert_gives_the_same_codes(body, via, example):
    q, qv, batch = calibrated(body)
    model = cj.export.tflite(q, qv, batch[:example], via=via)
    parity = cj.export.verify(model, q, qv, batch)
    assert parity.max_lsb == 0 and parity.mismatch_fraction == 0, str(parity)
    steps = q.plan(qv, batch[:example]).steps
    compared = {layer.name for layer in parity.layers}
    kinds = {step.name: step.kind for step in steps if step.name not in compared}
    assert set(kinds.values()) <= {"reshape", "transpose", "relu"}, kinds
    products = [step for step in steps if step.kind == "batch_matmul"]
    assert flatbuffer.ops(model).count("BATCH_MATMUL") == len(products)
