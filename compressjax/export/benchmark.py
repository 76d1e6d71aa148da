"""Measures how long LiteRT takes for one call, and which operations its fast kernels take.

`runtime.py` computes results; here only the time counts. `profile.py` says where it goes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export.flatbuffer import File
from compressjax.export.memory import arena_bytes
from compressjax.export.runtime import Session


class Latency(NamedTuple):
    """Seconds for one call of a model, and who computes it.

    Attributes:
        p50: the median.
        p90: the ninetieth percentile.
        min: the fastest call.
        delegated: operations that the XNNPACK delegate runs.
        not_delegated: operations left to LiteRT's own kernels.
        arena_bytes: memory of the tensors, computed (`memory.py`).
    """

    p50: float
    p90: float
    min: float
    delegated: tuple[str, ...]
    not_delegated: tuple[str, ...]
    arena_bytes: int

    def __str__(self) -> str:
        """One line, in milliseconds."""
        rest = f", not delegated: {', '.join(self.not_delegated)}" if self.not_delegated else ""
        return (
            f"p50 {1e3 * self.p50:.3f} ms, p90 {1e3 * self.p90:.3f} ms, min {1e3 * self.min:.3f} "
            f"ms, arena {self.arena_bytes / 1024:,.1f} KiB, {len(self.delegated)} operations "
            f"delegated{rest}"
        )


class Turns(NamedTuple):
    """How one model did beside others, in seconds for one call.

    Attributes:
        p50: the median over the rounds.
        p90: the ninetieth percentile.
        min: the fastest round.
        ratio: median of the rounds' ratios to the first model; 1.2 is 1.2 times slower.
        ratio_low: lower quartile of those ratios.
        ratio_high: upper quartile of those ratios.
    """

    p50: float
    p90: float
    min: float
    ratio: float
    ratio_low: float
    ratio_high: float


def benchmark(model: File, *, threads: int = 1, repeats: int = 50, warmup: int = 5) -> Latency:
    """Times a model on zeros of its own input shape.

    Args:
        model: the .tflite, as bytes or as a path.
        threads: CPU threads.
        repeats: timed calls.
        warmup: calls before the first timed one.

    Returns:
        The latency of one call, in seconds, without copying inputs and outputs.

    Raises:
        OSError: the path cannot be read.
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
    data = flatbuffer.content(model)
    session = _loaded(data, threads)
    _call(session, warmup)
    times = [_call(session, 1) for _ in range(repeats)]
    taken, left = delegation(session)
    p50, p90 = np.percentile(times, [50, 90])
    return Latency(float(p50), float(p90), min(times), taken, left, arena_bytes(data))


def compare(
    models: Mapping[str, File],
    *,
    threads: int = 1,
    rounds: int = 50,
    warmup: int = 5,
    least: float = 1e-3,
) -> dict[str, Turns]:
    """Times several models side by side, on zeros.

    On a machine that others use, times drift by more than the few percent that matter. So the
    models take turns within every round, the order rotates, and a ratio is the median of the
    rounds' ratios.

    Args:
        models: .tflite files by name; the first is what the others are compared with.
        threads: CPU threads.
        rounds: turns of each model, at least 2.
        warmup: calls before the first round, which also say how many calls make a turn.
        least: seconds that a turn should take at least, so that the clock is fine enough.

    Returns:
        For each model, in the order given, how it did.

    Raises:
        OSError: a path cannot be read.
        ValueError: a file is damaged, or there are too few models, rounds or warm-up calls.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> model = tflite(lambda variables, x: x * 2, {}, jnp.ones((1, 4)), via='litert')
        >>> compare({'one': model, 'same': model}, rounds=3)['one'].ratio
        1.0
    """
    if not models or rounds < 2 or warmup < 1:
        raise ValueError(
            "compare needs at least 1 model, 2 rounds and 1 warm-up call, found "
            f"{len(models)} models, rounds={rounds}, warmup={warmup}"
        )
    sessions = {name: _loaded(flatbuffer.content(model), threads) for name, model in models.items()}
    calls = {
        name: max(1, math.ceil(least / max(_call(session, warmup), 1e-9)))
        for name, session in sessions.items()
    }
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_call(sessions[name], calls[name]))
    found = {}
    for name in names:
        ratios = np.divide(times[name], times[names[0]])
        p50, p90 = np.percentile(times[name], [50, 90])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        found[name] = Turns(
            float(p50), float(p90), min(times[name]), float(middle), float(low), float(high)
        )
    return found


def _loaded(data: bytes, threads: int) -> Session:
    """A model whose inputs are zeros."""
    session = Session(data, threads=threads)
    for details in session.inputs:
        zeros = np.zeros(details["shape"], details["dtype"])
        session.interpreter.set_tensor(details["index"], zeros)
    return session


def _call(session: Session, times: int) -> float:
    """Calls a model, and gives the mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(times):
        session.interpreter.invoke()
    return (time.perf_counter() - start) / max(times, 1)


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
