"""LiteRT runs what was exported, on batches of any size, and says what is wrong with an input."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.export import benchmark, run, tflite
from compressjax.export.runtime import quantize
from tests.support import plans


@functools.cache
def _int8(int8_io: bool = False) -> bytes:
    model = plans.Model(plans.resnet())
    return tflite(model, {}, *model.example(), via="litert", int8_io=int8_io)


@functools.cache
def _float(batch: int = 1) -> bytes:
    return tflite(lambda v, a, b: a * 2 - b, {}, *[jnp.ones((batch, 3))] * 2, via="litert")


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 16, 16, 3)).astype(np.float32)


def test_a_batch_is_its_rows():
    x = _images(5)
    rows = [run(_int8(), x[i : i + 1]) for i in range(5)]
    np.testing.assert_array_equal(run(_int8(), x), np.concatenate(rows))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_that_do_not_divide(count):
    a, b = np.random.default_rng(0).normal(size=(2, count, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(_float(4), a, b), a * 2 - b)


def test_int8_io_takes_and_gives_the_same_reals():
    x = _images(3)
    np.testing.assert_array_equal(run(_int8(True), x), run(_int8(), x))


def test_quantize_rounds_half_to_even_and_clamps():
    codes = quantize(np.array([0.25, 0.75, -0.25, 1e9, -1e9], np.float32), 0.5, 3)
    assert codes.dtype == np.int8
    assert codes.tolist() == [3, 5, 3, 127, -128]


def test_wrong_inputs():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="takes 2 inputs, found 1"):
        run(_float(), x)
    with pytest.raises(ValueError, match=r"input 1 has shape \[2, 4\].*'N', 3"):
        run(_float(), x, np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="input 0 is int64, expected float32"):
        run(_float(), x.astype(np.int64), x)
    with pytest.raises(ValueError, match=r"\[2, 1\] rows"):
        run(_float(), x, x[:1])
    with pytest.raises(ValueError, match="at least one"):
        run(_float(), x[:0], x[:0])
    with pytest.raises(ValueError, match="threads=0"):
        run(_float(), x, x, threads=0)
    with pytest.raises(ValueError, match="damaged"):
        run(_float()[:-200], x, x)


def test_benchmark_says_who_computes():
    result = benchmark(_int8(), repeats=5)
    assert 0 < result.min <= result.p50 <= result.p90
    assert not result.not_delegated
    assert len(result.delegated) == 12
    model = plans.Model(plans.pools())
    pools = benchmark(tflite(model, {}, *model.example(), via="litert"), repeats=1)
    assert pools.not_delegated == ("AVERAGE_POOL_2D",)
    assert "not delegated: AVERAGE_POOL_2D" in str(pools)
    with pytest.raises(ValueError, match="repeats=0"):
        benchmark(_int8(), repeats=0)
