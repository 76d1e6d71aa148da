"""Proves that a file computes what the model computes, value by value.

`runtime.py` gives a file's outputs; here every tensor inside it is compared as well. LiteRT frees
inner tensors, and its option to keep them turns its fast kernels off, so the comparison runs a copy
of the file that returns them all; the final outputs come from the file itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compressjax.export import flatbuffer
from compressjax.export._require import require
from compressjax.export.runtime import Session, dequantize


@dataclasses.dataclass(frozen=True)
class Layer:
    """How one tensor of the file compares.

    Attributes:
        name: the tensor, which is the step of the plan.
        values: compared values.
        differing: those that differ.
        max_lsb: largest difference in steps of the int8 grid; 0 for float tensors.
    """

    name: str
    values: int
    differing: int
    max_lsb: int


@dataclasses.dataclass(frozen=True)
class Parity:
    """What `verify` found.

    Attributes:
        max_lsb: largest difference of any int8 tensor, in steps of its grid.
        mismatch_fraction: differing values over compared values.
        layers: every compared tensor, in the file's order; the outputs last.
        first_divergence: name of the first tensor with a differing value, or `None`.
        top1_agreement: fraction of the rows whose largest output is at the same place.
        max_abs: largest difference of the real outputs.
        max_relative: the same over the largest output magnitude.
        samples: rows of the batch.
    """

    max_lsb: int
    mismatch_fraction: float
    layers: tuple[Layer, ...]
    first_divergence: str | None
    top1_agreement: float
    max_abs: float
    max_relative: float
    samples: int

    def __str__(self) -> str:
        """A table of the layers and one line of summary."""
        width = max([len(layer.name) for layer in self.layers], default=0)
        lines = [f"{'tensor':{width}}  {'values':>12}  {'differing':>10}  max LSB"]
        lines += [
            f"{layer.name:{width}}  {layer.values:>12,}  {layer.differing:>10,}  {layer.max_lsb}"
            for layer in self.layers
        ]
        where = f"first in {self.first_divergence}" if self.first_divergence else "nowhere"
        lines.append(
            f"{sum(layer.differing for layer in self.layers):,} values differ ({where}), top-1 "
            f"agreement {self.top1_agreement:.2%} of {self.samples:,} rows, largest output "
            f"difference {self.max_abs:.3g} ({self.max_relative:.3g} relative)"
        )
        return "\n".join(lines)


def verify(
    model: bytes, fn_or_q: Any, variables: Any, batch: Any, *, slice_size: int = 64
) -> Parity:
    """Compares a file with the model that it was exported from.

    For a quantized model every int8 tensor that carries a step's name is compared, code by code,
    with `q.intermediates`; for a function the real outputs are compared.

    Args:
        model: the .tflite.
        fn_or_q: `fn(variables, *args)`, or what `compressjax.quantize` returned.
        variables: its variables.
        batch: float32 `[N, ...]`, or a tuple with one such array per input.
        slice_size: rows computed at once, which bounds the memory.

    Returns:
        The comparison; `max_lsb` 0 and `mismatch_fraction` 0 mean that the two are equal. Outputs
        that are int8 in the file are compared as codes; float outputs of a function as reals.

    Raises:
        TypeError: an input is not a float array.
        ValueError: the file is damaged, has no tensor of the model's names, or takes other shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.tflite import tflite
        >>> def apply(variables, x):
        ...     return 2 * x
        >>> model = tflite(apply, {}, jnp.ones((1, 2)), via='litert')
        >>> verify(model, apply, {}, np.ones((4, 2), np.float32)).max_abs
        0.0
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)
    inputs = tuple(np.asarray(value) for value in inputs)
    compare = _Comparison(model, quantized=hasattr(fn_or_q, "intermediates"))

    @jax.jit
    def compute(variables: Any, rows: Sequence[jax.Array]) -> tuple[dict[str, jax.Array], Any]:
        if compare.quantized:
            return fn_or_q.intermediates(variables, *rows), fn_or_q.apply(variables, *rows)
        return {}, fn_or_q(variables, *rows)

    for rows, count in _slices(inputs, slice_size):
        codes, outputs = compute(variables, rows)
        if compare.quantized:
            compare.codes(codes, rows, count)
        compare.outputs([np.asarray(x) for x in jax.tree.leaves(outputs)], rows, count)
    return compare.result()


def with_all_tensors(model: bytes) -> tuple[bytes, list[str]]:
    """Makes a copy of a file that returns every int8 tensor it computes.

    Args:
        model: the .tflite.

    Returns:
        The copy, and the names of its outputs in order.
    """
    unpacked = flatbuffer.read(model)
    schema = require("ai_edge_litert.schema_py_generated")
    graph = unpacked.subgraphs[0]
    made = [int(i) for i in graph.inputs]
    made += [int(i) for operator in graph.operators for i in operator.outputs]
    made = [i for i in made if graph.tensors[i].type == schema.TensorType.INT8]
    graph.outputs, unpacked.signatureDefs = made, None
    return flatbuffer.write(unpacked), [flatbuffer.text(graph.tensors[i].name) for i in made]


def _slices(
    inputs: Sequence[np.ndarray], size: int
) -> Iterator[tuple[tuple[np.ndarray, ...], int]]:
    """Slices of one size, so that nothing compiles twice: the last row fills the last slice."""
    total = len(inputs[0]) if inputs[0].ndim else 0
    if not total:
        raise ValueError("verify needs at least one row, found an empty batch")
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + min(size, total)), total - 1)
        yield tuple(value[rows] for value in inputs), min(size, total - start)


class _Comparison:
    """Counts differences over the slices of a batch."""

    def __init__(self, model: bytes, *, quantized: bool) -> None:
        self.quantized = quantized
        self.session = Session(model)
        self.layers: dict[str, np.ndarray] = {}  # name -> values, differing, largest difference
        self.rows = 0
        self.agreeing = self.max_abs = self.magnitude = 0.0
        if quantized:
            probe, self.names = with_all_tensors(model)
            self.probe = Session(probe)

    def codes(self, expected: Mapping[str, Any], rows: Sequence[np.ndarray], count: int) -> None:
        """Compares the inner tensors of the first `count` rows of a slice."""
        if not set(self.names) & set(expected):
            raise ValueError(
                f"no tensor of the file has a name of the model: the file has {self.names[:5]}, "
                f"the model {list(expected)[:5]}; was it exported by compressjax.export.tflite?"
            )
        found = [np.concatenate(parts) for parts in zip(*self.probe.slices(rows), strict=True)]
        for name, codes in zip(self.names, found, strict=True):
            if name in expected:
                self._count(name, codes, np.asarray(expected[name]), count)

    def outputs(
        self, expected: Sequence[np.ndarray], rows: Sequence[np.ndarray], count: int
    ) -> None:
        """Compares the outputs of the first `count` rows of a slice."""
        parts = zip(*self.session.slices(rows), strict=True)
        found = [
            dequantize(np.concatenate(part), details)
            for part, details in zip(parts, self.session.outputs, strict=True)
        ]
        if [x.shape for x in found] != [x.shape for x in expected]:
            raise ValueError(
                f"the file puts out {[x.shape for x in found]} for {len(rows[0])} rows, "
                f"the model {[x.shape for x in expected]}"
            )
        for position, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
            self._count(f"output_{position}", theirs, ours, count)
            self.max_abs = max(self.max_abs, float(np.abs(ours - theirs).max(initial=0)))
            self.magnitude = max(self.magnitude, float(np.abs(ours).max(initial=0)))
        if expected[0].ndim > 1:
            same = (expected[0].argmax(-1) == found[0].argmax(-1))[:count]
            self.agreeing += float(same.reshape(len(same), -1).mean(-1).sum())
        else:
            self.agreeing += count
        self.rows += count

    def _count(self, name: str, found: np.ndarray, expected: np.ndarray, count: int) -> None:
        if found.size != expected.size:
            raise ValueError(
                f"tensor {name!r} has shape {list(found.shape)} in the file and "
                f"{list(expected.shape)} in the model: verify with the batch axis first"
            )
        expected, found = expected.reshape(found.shape)[:count], found[:count]
        differing, largest = int((found != expected).sum()), 0
        if found.dtype == np.int8:
            steps = np.abs(found.astype(np.int16) - expected.astype(np.int16))
            largest = int(steps.max(initial=0))
        row = self.layers.setdefault(name, np.zeros(3, np.int64))
        row[:2] += (found.size, differing)
        row[2] = max(row[2], largest)

    def result(self) -> Parity:
        """Sums up."""
        last = [name for name in self.layers if name.startswith("output_")]
        order = [name for name in self.layers if name not in last] + last
        layers = tuple(Layer(name, *map(int, self.layers[name])) for name in order)
        total = sum(layer.values for layer in layers)
        return Parity(
            max_lsb=max(layer.max_lsb for layer in layers),
            mismatch_fraction=sum(layer.differing for layer in layers) / max(total, 1),
            layers=layers,
            first_divergence=next((x.name for x in layers if x.differing), None),
            top1_agreement=self.agreeing / self.rows,
            max_abs=self.max_abs,
            max_relative=self.max_abs / self.magnitude if self.magnitude else 0.0,
            samples=self.rows,
        )
