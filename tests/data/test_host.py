"""Batches from the host come in order, ahead of time, and stop when nobody wants them."""

import threading

import jax
import numpy as np
import pytest

from compressjax.data import Arrays, epoch_indices, host_batches


def test_gives_what_indexing_on_the_device_gives():
    rng = np.random.default_rng(0)
    arrays = Arrays(
        rng.integers(0, 256, [23, 4, 4, 1], np.uint8), np.arange(23, dtype=np.int32), num_classes=23
    )
    indices = epoch_indices(jax.random.key(0), len(arrays), 5)
    batches = list(host_batches(arrays.fetch, indices))
    assert len(batches) == 4
    for (images, labels), row in zip(batches, np.asarray(indices), strict=True):
        assert isinstance(images, jax.Array)
        np.testing.assert_array_equal(images, arrays.images[row])
        np.testing.assert_array_equal(labels, row)


def test_fetches_ahead_but_not_further():
    started = []
    may_start = threading.Semaphore(100)

    def fetch(row):
        may_start.acquire()
        started.append(int(row[0]))
        return row

    batches = host_batches(fetch, np.arange(10)[:, None], ahead=3)
    next(batches)
    # The first was taken out after one more than `ahead` had been asked for.
    batches.close()
    assert started == sorted(started) and 1 <= len(started) <= 4


def test_error_comes_at_its_batch():
    def fetch(row):
        if row[0] == 2:
            raise OSError("damaged record 2")
        return row

    batches = host_batches(fetch, np.arange(5)[:, None])
    assert [int(next(batches)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="damaged record 2"):
        next(batches)


def test_nothing_ahead_is_refused_at_once():
    with pytest.raises(ValueError, match="ahead=0 must be at least 1"):
        host_batches(lambda row: row, np.zeros([1, 1], np.int32), ahead=0)
