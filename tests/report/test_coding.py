"""What an ideal code needs for weights, against the definition."""

import gzip

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import report
from compressjax.export import sparsify, tflite
from compressjax.report.coding import coded_bits
from tests.support import coding_oracles


@hypothesis.given(st.lists(st.integers(-5, 5), min_size=0, max_size=40))
@hypothesis.settings(max_examples=40, deadline=None)
def test_entropy_is_that_of_the_definition(values):
    found = report.entropy_bits(np.array(values, np.int8))
    np.testing.assert_allclose(found, coding_oracles.entropy_bits(values), atol=1e-9)


@pytest.mark.parametrize(
    ("values", "bits"),
    [([7] * 9, 0), ([0, 1] * 8, 16), (list(range(16)), 64), ([0] * 12 + [1] * 4, 12.98)],
)
def test_known_entropies(values, bits):
    for dtype in (np.int8, np.int32, np.float32, jnp.bfloat16):
        found = report.entropy_bits(np.array(values, dtype))
        np.testing.assert_allclose(found, bits, atol=1e-2)


def test_one_huffman_code_of_the_paper_lies_within_a_bit_a_value():
    """Powers of two as frequencies: there Huffman's code is the entropy (1, 2, 3, 3 bits)."""
    values = np.repeat(np.arange(4, dtype=np.int8), [8, 4, 2, 2])
    assert report.entropy_bits(values) == 8 * 1 + 4 * 2 + 2 * 3 + 2 * 3


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_code_is_never_longer_than_the_array_and_shrinks_with_zeros(dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=4096) * 40
    bits = [
        coded_bits((values * (rng.random(4096) >= zeros)).astype(dtype))
        for zeros in (0, 0.5, 0.8, 0.95)
    ]
    assert bits[0] <= 4096 * 8 * np.dtype(dtype).itemsize
    assert bits == sorted(bits, reverse=True) and bits[-1] < bits[0] / 5


def test_tree_counts_weights_and_zeros():
    tree = {"kernel": jnp.zeros((8, 8)).at[0].set(jnp.arange(8.0)), "bias": np.ones(3, np.int32)}
    size = report.tree_size(tree)
    assert (size.weights, size.nonzero, size.file_bytes) == (67, 10, 268)
    zero_places = coding_oracles.entropy_bits([True] * 7 + [False] * 57)
    assert size.entropy_bytes == int(np.ceil((zero_places + 7 * 32 + 32) / 8))


def test_empty_tree_and_wrong_leaves():
    assert report.tree_size({})[:3] == (0, 0, 0)
    assert report.tree_size({"none": np.zeros((0, 4), np.float32)}).entropy_bytes == 0
    with pytest.raises(TypeError, match=r"\['key'\] is key<fry>|\['key'\]"):
        report.tree_size({"key": np.array(["text"])})
    with pytest.raises(TypeError, match="bytes"):
        report.coded_size("model.tflite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="TFL3"):
        report.coded_size(b"nothing")


def test_file_is_measured_the_same_dense_and_sparse():
    keep = jax.random.uniform(jax.random.key(0), (64, 48)) < 0.1
    kernel = jnp.where(keep, jax.random.normal(jax.random.key(1), (64, 48)), 0)
    model = tflite(lambda v, x: x @ v, kernel, jnp.ones((1, 64)), via="litert")
    plain, packed = report.coded_size(model), report.coded_size(sparsify(model))
    assert plain.nonzero == packed.nonzero == int(keep.sum())
    assert plain.weights == packed.weights == kernel.size
    assert plain.file_bytes == len(model) > packed.file_bytes
    assert plain.gzip_bytes == len(gzip.compress(model, 9, mtime=0))
    coded = int(np.ceil(coded_bits(np.asarray(kernel)) / 8))
    rest = len(model) - 4 * kernel.size
    assert plain.entropy_bytes == rest + coded
    assert coded <= packed.entropy_bytes <= plain.entropy_bytes + 1024  # the tables of the levels
