"""Batches for data sets that do not fit on the device: read and sent ahead of the step.

The indices come from `pipeline.epoch_indices`, the examples from `Source.fetch` or `Arrays.fetch`.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def host_batches(
    fetch: Callable[[np.ndarray], Any], indices: np.ndarray | jax.Array, *, ahead: int = 2
) -> Iterator[Any]:
    """Gives one epoch's batches on the device, the next ones being fetched in the background.

    Args:
      fetch: gives the batch, a pytree of host arrays, at indices `[B]`.
      indices: `[steps, B]` int, as `epoch_indices` gives them.
      ahead: batches fetched before they are asked for; each takes memory on host and device.

    Returns:
      An iterator over the batches as device arrays, in the order of `indices`. What `fetch` raises
      is raised at the batch it belongs to. Closing it early cancels what is not yet fetched.

    Raises:
      ValueError: `ahead` is less than 1.

    Example:
      >>> data = np.arange(6, dtype=np.int32) * 10
      >>> [batch.tolist() for batch in host_batches(lambda i: data[i], np.array([[5, 0], [2, 1]]))]
      [[50, 0], [20, 10]]
    """
    if ahead < 1:
        raise ValueError(f"host_batches: ahead={ahead} must be at least 1")
    return _fetched_ahead(fetch, np.asarray(indices), ahead)


def _fetched_ahead(
    fetch: Callable[[np.ndarray], Any], indices: np.ndarray, ahead: int
) -> Iterator[Any]:
    """Runs `fetch` on each row of `indices` in a thread, at most `ahead` rows before the caller."""
    pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    # One thread: it keeps the order of reads, and decoding holds the interpreter's lock anyway.
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="host_batches") as pool:
        try:
            for row in indices:
                pending.append(pool.submit(lambda row: jax.device_put(fetch(row)), row))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
