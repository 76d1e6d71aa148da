"""Proves that a file computes what the model computes, value by value.

`runtime.py` gives a file's outputs; here every tensor inside it is compared as well, through the
copies that `probe.py` makes; the final outputs come from the file itself. `parity.py` says what a
comparison found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax import quant
from compressjax.export import flatbuffer, probe
from compressjax.export.flatbuffer import File
from compressjax.export.load import Loaded
from compressjax.export.meaning import SUMMED
from compressjax.export.parity import Distance, Parity, Tally, check_shapes, sqnr_db
from compressjax.export.probe import Probe
from compressjax.export.rows import joined
from compressjax.export.runtime import Session, dequantize
from compressjax.quant import calibration

Rows = Sequence[np.ndarray]


def verify(
    model: File,
    fn_or_q: Any,
    variables: Any,
    batch: Any,
    *,
    reference: int = 0,
    real: tuple[Callable[..., Any], Any] | File | None = None,
    tolerance: float | None = None,
    slice_size: int = 64,
) -> Parity:
    """Compares a file with the model that it was exported from.

    For a quantized model every int8 and int16 tensor that carries a step's name is compared, code
    by code, with `intermediates`; for a function, or where only kernels are quantized, the real
    outputs are compared. LiteRT's default kernels (XNNPACK) are what phones run, and equal
    `q.apply`; its reference kernels round differently (gemmlowp's fixed point), by one step here
    and there, so their differences say how much a runtime without XNNPACK would change.

    Args:
        model: the .tflite, as bytes or as a path.
        fn_or_q: `fn(variables, *args)`, or what `compressjax.quantize` returned, or anything else
            with its `apply` and `intermediates`; or `None`, for a file of which nothing else is
            known: its default kernels are compared with its reference kernels.
        variables: its variables; `None` without a model.
        batch: float32 `[N, ...]`, or a tuple with one such array per input.
        reference: how many of the first rows the reference kernels compute too; they are slow.
        real: the float model, for the error that quantization makes: `(fn, variables)` with the
            function that was quantized (every tensor of the plan is compared), or a float .tflite
            of the same network (layers are found by their kernels).
        tolerance: the part of a tensor's largest magnitude by which real values may differ and
            count as equal: that of a network that was loaded, 1e-5 without a model, and otherwise
            none, where not given. Codes are equal or not.
        slice_size: rows computed at once, which bounds the memory.

    Returns:
        The comparison; `max_lsb` 0 and `mismatch_fraction` 0 mean that the two are equal. Outputs
        that are int8 in the file are compared as codes; float outputs of a function as reals.

    Raises:
        OSError: a path cannot be read.
        TypeError: an input is not a float array.
        ValueError: a file is damaged, has no tensor of the model's names, or takes other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> def apply(variables, x):
        ...     return 2 * x
        >>> model = tflite(apply, {}, jnp.ones((1, 2)), via='litert')
        >>> verify(model, apply, {}, np.ones((4, 2), np.float32)).max_abs
        0.0
    """
    if reference < 0:
        raise ValueError(f"reference={reference}: expected a number of rows, or 0 for none")
    model = flatbuffer.content(model)
    inputs = tuple(np.asarray(value) for value in (batch if isinstance(batch, tuple) else (batch,)))
    if tolerance is None:
        tolerance = fn_or_q.tolerance if isinstance(fn_or_q, Loaded) else 0.0
        tolerance = SUMMED if fn_or_q is None else tolerance
    tensors = _compared(model, fn_or_q)
    fast = _Comparison(model, tensors, tolerance=tolerance)
    slow = _Comparison(model, tensors, tolerance=tolerance, reference=True) if reference else None
    floats = None if real is None else _Floats(model, real, fast)
    if fn_or_q is None:
        compute = _on_reference_kernels(model)
    else:
        compute = _on_model(fn_or_q, variables, inside=bool(tensors))
    for rows, start, count in _slices(inputs, slice_size):
        codes, expected = compute(rows)
        fast.add(codes, expected, rows, count)
        if floats is not None:
            floats.add(rows, count)
        if slow is not None and start < reference:
            slow.add(codes, expected, rows, min(count, reference - start))
    found = fast.tally.result()
    if slow is not None:
        found = dataclasses.replace(found, reference=slow.tally.result())
    return found if floats is None else floats.result(found)


_Compute = Callable[[Rows], tuple[Mapping[str, np.ndarray], list[np.ndarray]]]


def _on_model(fn_or_q: Any, variables: Any, *, inside: bool) -> _Compute:
    """What a model has inside, by name, and its outputs."""

    @jax.jit
    def compute(variables: Any, rows: Sequence[jax.Array]) -> tuple[dict[str, jax.Array], Any]:
        if inside:
            return fn_or_q.intermediates(variables, *rows), fn_or_q.apply(variables, *rows)
        return {}, getattr(fn_or_q, "apply", fn_or_q)(variables, *rows)

    def run(rows: Rows) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        codes, outputs = compute(variables, rows)
        return jax.device_get(codes), [np.asarray(x) for x in jax.tree.leaves(outputs)]

    return run


def _on_reference_kernels(model: bytes) -> _Compute:
    """The integer tensors of a file on LiteRT's reference kernels, and its outputs."""
    session, tensors = Session(model, reference=True), probe.integer_tensors(model)
    inside = Probe(model, tensors, reference=True) if tensors else None

    def run(rows: Rows) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        codes = zip(inside.names, inside.values(rows), strict=True) if inside else ()
        return dict(codes), _outputs(session, rows)

    return run


def _compared(model: bytes, fn_or_q: Any) -> list[int]:
    """Which tensors inside of a file are compared: those with codes, where the model has codes too.

    A model that quantizes kernels alone computes in floats, and has no names for them. A file that
    was rebuilt has, so all that it computes is compared.
    """
    if isinstance(fn_or_q, Loaded):
        return list(fn_or_q.computed)
    spec = getattr(fn_or_q, "spec", None)
    placed = spec is None or isinstance(spec.activations, tuple)
    inside = fn_or_q is None or (placed and hasattr(fn_or_q, "intermediates"))
    return probe.integer_tensors(model) if inside else []


def _slices(inputs: Rows, size: int) -> Iterator[tuple[tuple[np.ndarray, ...], int, int]]:
    """Slices of one size, so that nothing compiles twice: the last row fills the last slice."""
    total = len(inputs[0]) if inputs[0].ndim else 0
    if not total:
        raise ValueError("verify needs at least one row, found an empty batch")
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + min(size, total)), total - 1)
        yield tuple(value[rows] for value in inputs), start, min(size, total - start)


class _Comparison:
    """Compares one set of kernels with the model, slice by slice.

    Attributes:
        tally: what was counted.
        codes: what the probe returned for the last slice, by name, rows first.
        reals: the file's outputs for the rows of the last slice that count.
    """

    def __init__(
        self, model: bytes, tensors: Sequence[int], *, tolerance: float, reference: bool = False
    ) -> None:
        self.session = Session(model, reference=reference)
        self.probe = Probe(model, tensors, reference=reference) if tensors else None
        self.tally = Tally(tolerance=tolerance)
        self.codes: dict[str, np.ndarray] = {}
        self.reals: list[np.ndarray] = []

    def add(
        self, codes: Mapping[str, Any], outputs: Sequence[np.ndarray], rows: Rows, count: int
    ) -> None:
        """Compares the first `count` rows of a slice; the file computes no more than it must."""
        size, total = self.session.inputs[0]["shape"][:1], len(rows[0])
        whole = -(-count // int(size[0])) * int(size[0]) if len(size) else count
        rows = [value[:whole] for value in rows]
        if self.probe is not None:
            self._add_codes(self.probe, codes, rows, total, count)
        found, ran = _outputs(self.session, rows), len(rows[0])
        shapes = [(x.shape[0] * ran // total, *x.shape[1:]) if x.ndim else () for x in outputs]
        if [x.shape for x in found] != shapes:
            raise ValueError(
                f"the file puts out {[x.shape for x in found]} for {ran} rows, the model {shapes}"
            )
        self.reals = [_first("output", x, ran, count) for x in found]
        ours = [_first("output", x, total, count) for x in outputs]
        self.tally.add_outputs(self.reals, ours, count)

    def _add_codes(
        self, probing: Probe, expected: Mapping[str, Any], rows: Rows, total: int, count: int
    ) -> None:
        if not set(probing.names) & set(expected):
            raise ValueError(
                f"no tensor of the file has a name of the model: the file has {probing.names[:5]}, "
                f"the model {list(expected)[:5]}; was it exported by compressjax.export.tflite?"
            )
        found = dict(zip(probing.names, probing.values(rows), strict=True))
        self.codes = {
            name: _rows(name, codes, len(rows[0]), count) for name, codes in found.items()
        }
        for name, codes in self.codes.items():
            if name in expected:
                ours = _batch_first(np.asarray(expected[name]), probing.shapes[name])
                self.tally.add(name, codes, _rows(name, ours, total, count))


class _Floats:
    """Sums the error against the float model over the slices of a batch."""

    def __init__(
        self, model: bytes, real: tuple[Callable[..., Any], Any] | File, fast: _Comparison
    ) -> None:
        self.fast, self.ends = fast, Tally()
        self.sums: dict[str, np.ndarray] = {}  # name -> signal, noise
        if isinstance(real, tuple):
            self.compute = _real_function(*real, steps=fast.probe is not None)
        else:
            self.compute = _real_file(model, flatbuffer.content(real))

    def add(self, rows: Rows, count: int) -> None:
        """Compares the first `count` rows of the slice that was compared last."""
        (inner, outputs), total = self.compute(rows), len(rows[0])
        probing = self.fast.probe
        if probing is not None:
            for name, (scale, point) in zip(probing.names, probing.grids, strict=True):
                if name in inner and name in self.fast.tally:
                    file = self.fast.codes[name].astype(np.float32)
                    file = np.float32(scale) * (file - np.float32(point)) if scale else file
                    ours = _batch_first(np.asarray(inner[name]), probing.shapes[name])
                    self._sum(name, _rows(name, ours, total, count), file)
        reals = [_first("output", x, total, count) for x in outputs]
        self.ends.add_outputs(self.fast.reals, reals, count)
        for position, (real, file) in enumerate(zip(reals, self.fast.reals, strict=True)):
            self._sum(f"output_{position}", real, file)

    def _sum(self, name: str, real: np.ndarray, file: np.ndarray) -> None:
        check_shapes(name, file, real)
        wide = real.astype(np.float64)
        row = self.sums.setdefault(name, np.zeros(2))
        row += (np.square(wide).sum(), np.square(wide - file).sum())

    def result(self, found: Parity) -> Parity:
        """Adds the errors to what was found."""
        ratios = {name: sqnr_db(*map(float, row)) for name, row in self.sums.items()}
        layers = [
            dataclasses.replace(layer, sqnr_db=ratios.get(layer.name)) for layer in found.layers
        ]
        outputs = self.ends.result()
        total = sqnr_db(*map(float, np.sum([self.sums[x.name] for x in outputs.layers], axis=0)))
        real = Distance(outputs.top1_agreement, outputs.max_abs, total)
        return dataclasses.replace(found, layers=tuple(layers), real=real)


def _real_function(fn: Callable[..., Any], variables: Any, *, steps: bool) -> _Compute:
    """The float value of every step of the plan that a function becomes, and its outputs."""
    plan = quant.quantize(fn).plan

    @jax.jit
    def compute(variables: Any, rows: Sequence[jax.Array]) -> tuple[dict[str, jax.Array], Any]:
        if not steps:
            return {}, fn(variables, *rows)
        made = plan(variables, *rows)
        return calibration.real_tensors(made, variables, tuple(rows)), fn(variables, *rows)

    def run(rows: Rows) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        inner, outputs = compute(variables, rows)
        return jax.device_get(inner), [np.asarray(x) for x in jax.tree.leaves(outputs)]

    return run


def _real_file(model: bytes, real: bytes) -> _Compute:
    """The float value of every layer of a file that a float file has too, and its outputs."""
    layers = probe.same_layers(model, real)
    session = Session(real)
    inside = Probe(real, list(layers.values())) if layers else None

    def run(rows: Rows) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        inner = dict(zip(layers, inside.values(rows), strict=True)) if inside else {}
        return inner, _outputs(session, rows)

    return run


def _outputs(session: Session, rows: Rows) -> list[np.ndarray]:
    """The real outputs of a file."""
    return list(map(dequantize, joined(list(session.slices(rows))), session.outputs))


def _first(name: str, values: np.ndarray, rows: int, count: int) -> np.ndarray:
    """The part of an array for the first `count` of `rows` rows, its axes as they are."""
    values = np.atleast_1d(values)
    if len(values) % rows:
        raise _misplaced(name, values, rows)
    return values[: len(values) // rows * count]


def _rows(name: str, values: np.ndarray, rows: int, count: int) -> np.ndarray:
    """The first `count` of `rows` rows, each flat: the batch may be merged into another axis."""
    if values.size % rows:
        raise _misplaced(name, values, rows)
    return values.reshape(rows, -1)[:count]


def _misplaced(name: str, values: np.ndarray, rows: int) -> ValueError:
    return ValueError(
        f"tensor {name!r} has shape {list(values.shape)} for {rows} rows: verify with the batch "
        "axis first"
    )


def _batch_first(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Lays a tensor out as the slices of the file lie behind each other.

    Args:
        values: of all rows, the batch on any axis, or merged into the first.
        shape: of the same tensor in one slice of the file.
    """
    if values.ndim != len(shape) or values.shape[1:] == tuple(shape[1:]):
        return values
    grown = [axis for axis in range(values.ndim) if values.shape[axis] != shape[axis]]
    if len(grown) != 1 or values.shape[grown[0]] % shape[grown[0]]:
        return values
    (axis,) = grown
    split = (*values.shape[:axis], -1, *shape[axis:])
    return np.moveaxis(values.reshape(split), axis, 0).reshape(-1, *shape[1:])
