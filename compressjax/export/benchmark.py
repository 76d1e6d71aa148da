"""Measures how long LiteRT takes for one call, and which operations its fast kernels take.

`runtime.py` computes results; here only the time counts.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from compressjax.export.runtime import Session


class Latency(NamedTuple):
    """Seconds for one call of a model, and who computes it.

    Attributes:
        p50: the median.
        p90: the ninetieth percentile.
        min: the fastest call.
        delegated: operations that the XNNPACK delegate runs.
        not_delegated: operations left to LiteRT's own kernels.
    """

    p50: float
    p90: float
    min: float
    delegated: tuple[str, ...]
    not_delegated: tuple[str, ...]

    def __str__(self) -> str:
        """One line, in milliseconds."""
        rest = f", not delegated: {', '.join(self.not_delegated)}" if self.not_delegated else ""
        return (
            f"p50 {1e3 * self.p50:.3f} ms, p90 {1e3 * self.p90:.3f} ms, min {1e3 * self.min:.3f} "
            f"ms, {len(self.delegated)} operations delegated{rest}"
        )


def benchmark(model: bytes, *, threads: int = 1, repeats: int = 50, warmup: int = 5) -> Latency:
    """Times a model on zeros of its own input shape.

    Args:
        model: the .tflite.
        threads: CPU threads.
        repeats: timed calls.
        warmup: calls before the first timed one.

    Returns:
        The latency of one call, in seconds, without copying inputs and outputs.

    Raises:
        ValueError: the file is damaged, LiteRT refuses it, or `repeats` is less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> model = tflite(lambda variables, x: x * 2, {}, jnp.ones((1, 4)), via='litert')
        >>> benchmark(model, repeats=3).delegated
        ('MUL',)
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: expected 1 or more")
    session = Session(model, threads=threads)
    for details in session.inputs:
        zeros = np.zeros(details["shape"], details["dtype"])
        session.interpreter.set_tensor(details["index"], zeros)
    times = []
    for call in range(warmup + repeats):
        start = time.perf_counter()
        session.interpreter.invoke()
        if call >= warmup:
            times.append(time.perf_counter() - start)
    taken, left = delegation(session)
    p50, p90 = np.percentile(times, [50, 90])
    return Latency(float(p50), float(p90), min(times), taken, left)


def delegation(session: Session) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tells which operations of a loaded model the delegate has taken.

    Args:
        session: the loaded model.

    Returns:
        Names of the delegated operations and of the others, in execution order.
    """
    details: list[dict[str, Any]] = session.interpreter._get_ops_details()
    nodes = [node for node in details if node["op_name"] != "DELEGATE"]
    makers = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    taken: set[int] = set()
    for part in details:
        if part["op_name"] != "DELEGATE":
            continue
        outside = {int(tensor) for tensor in part["inputs"]}
        stack = [int(tensor) for tensor in part["outputs"]]
        while stack:  # from the part's outputs back to its inputs
            tensor = stack.pop()
            node = makers.get(tensor)
            if tensor not in outside and node is not None and node["index"] not in taken:
                taken.add(node["index"])
                stack.extend(int(source) for source in node["inputs"])
    delegated = tuple(node["op_name"] for node in nodes if node["index"] in taken)
    return delegated, tuple(node["op_name"] for node in nodes if node["index"] not in taken)
