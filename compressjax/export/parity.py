"""What a comparison of a file with its model found, as numbers, as a table and as a verdict.

`verify.py` and `agreement.py` run the two sides; this file only counts, so it needs neither a
runtime nor the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
    """How one tensor of the file compares.

    Attributes:
        name: the tensor, which is the step of the plan.
        values: compared values.
        differing: those that differ.
        max_lsb: largest difference in steps of the integer grid; 0 for float tensors.
        sqnr_db: signal-to-quantization-noise ratio against the float model's value of the same
            operation, in dB: `10 log10(sum(real^2) / sum((real - file)^2))`, infinite where the two
            are equal; `None` where the float model has no such value.
    """

    name: str
    values: int
    differing: int
    max_lsb: int
    sqnr_db: float | None = None


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far the outputs of a file are from those of the float model.

    Attributes:
        top1_agreement: fraction of the rows whose largest output is at the same place.
        max_abs: largest difference.
        sqnr_db: signal-to-quantization-noise ratio of all outputs, in dB.
    """

    top1_agreement: float
    max_abs: float
    sqnr_db: float


@dataclasses.dataclass(frozen=True)
class Parity:
    """What `verify` found.

    Attributes:
        max_lsb: largest difference of any integer tensor, in steps of its grid.
        mismatch_fraction: differing values over compared values.
        layers: every compared tensor, in the file's order; the outputs last.
        first_divergence: name of the first tensor with a differing value, or `None`.
        top1_agreement: fraction of the rows whose largest output is at the same place.
        max_abs: largest difference of the real outputs.
        max_relative: the same over the largest output magnitude.
        samples: rows of the batch.
        reference: the same comparison on LiteRT's reference kernels, or `None` if not asked for.
        real: how far the outputs are from the float model's, or `None` if none was given.
    """

    max_lsb: int
    mismatch_fraction: float
    layers: tuple[Layer, ...]
    first_divergence: str | None
    top1_agreement: float
    max_abs: float
    max_relative: float
    samples: int
    reference: Parity | None = None
    real: Distance | None = None

    @property
    def values(self) -> int:
        """Compared values of all tensors."""
        return sum(layer.values for layer in self.layers)

    @property
    def differing(self) -> int:
        """Values that differ."""
        return sum(layer.differing for layer in self.layers)

    def __str__(self) -> str:
        """A table of the layers, and a line of summary for each comparison."""
        rows = [["tensor", "values", "differing", "max LSB"]]
        rows += [
            [layer.name, f"{layer.values:,}", f"{layer.differing:,}", f"{layer.max_lsb}"]
            for layer in self.layers
        ]
        if self.reference is not None:
            slow = {layer.name: layer for layer in self.reference.layers}
            rows[0] += ["reference differ", "max LSB"]
            for row, layer in zip(rows[1:], self.layers, strict=True):
                other = slow[layer.name]
                row += [f"{other.differing / max(other.values, 1):.4%}", f"{other.max_lsb}"]
        if self.real is not None:
            rows[0] += ["SQNR dB"]
            for row, layer in zip(rows[1:], self.layers, strict=True):
                row += ["" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}"]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*lines, *self._summary()])

    def _summary(self) -> list[str]:
        lines = [_sentence(self)]
        if self.reference is not None:
            lines.append(f"on the reference kernels: {_sentence(self.reference)}")
        if self.real is not None:
            lines.append(
                f"against the float model: top-1 agreement {self.real.top1_agreement:.2%}, outputs "
                f"with {self.real.sqnr_db:.1f} dB, largest difference {self.real.max_abs:.3g}"
            )
        return lines

    def check(
        self,
        *,
        max_lsb: int = 0,
        mismatch_fraction: float = 0.0,
        reference_mismatch_fraction: float = 1.0,
        top1_agreement: float = 0.0,
        sqnr_db: float = -math.inf,
    ) -> tuple[str, ...]:
        """Says which thresholds the file passes.

        Args:
            max_lsb: the largest difference that is allowed on the default kernels.
            mismatch_fraction: the part of the values that may differ on the default kernels.
            reference_mismatch_fraction: the same on the reference kernels.
            top1_agreement: the least agreement with the float model, in [0, 1].
            sqnr_db: the least signal-to-quantization-noise ratio of the outputs, in dB.

        Returns:
            A sentence for each threshold that is passed; empty if the file is good.

        Raises:
            ValueError: a threshold is about a comparison that was not made.

        Example:
            >>> layer = Layer('conv', values=1000, differing=2, max_lsb=1)
            >>> parity = Parity(1, 0.002, (layer,), 'conv', 1.0, 0.01, 0.001, 10)
            >>> parity.check(max_lsb=1, mismatch_fraction=0.01)
            ()
            >>> parity.check(mismatch_fraction=0.01)
            ('values differ by up to 1 LSB, at most 0 is allowed: first in conv',)
        """
        if self.reference is None and reference_mismatch_fraction < 1:
            raise ValueError("the reference kernels were not compared: verify with reference=16")
        if self.real is None and (top1_agreement > 0 or sqnr_db > -math.inf):
            raise ValueError("no float model was compared: verify with real=(fn, variables)")
        where, passed = f"first in {self.first_divergence}", []
        if self.max_lsb > max_lsb:
            passed.append(
                f"values differ by up to {self.max_lsb} LSB, at most {max_lsb} is allowed: {where}"
            )
        if self.mismatch_fraction > mismatch_fraction:
            passed.append(
                f"{self.mismatch_fraction:.4%} of the values differ, at most "
                f"{mismatch_fraction:.4%} may: {where}"
            )
        slow = self.reference
        if slow is not None and slow.mismatch_fraction > reference_mismatch_fraction:
            passed.append(
                f"{slow.mismatch_fraction:.4%} of the values differ on the reference kernels, at "
                f"most {reference_mismatch_fraction:.4%} may: first in {slow.first_divergence}"
            )
        if self.real is not None and self.real.top1_agreement < top1_agreement:
            passed.append(
                f"top-1 agreement with the float model is {self.real.top1_agreement:.2%}, at least "
                f"{top1_agreement:.2%} is asked for"
            )
        if self.real is not None and self.real.sqnr_db < sqnr_db:
            passed.append(
                f"the outputs have {self.real.sqnr_db:.1f} dB against the float model, at least "
                f"{sqnr_db:.1f} dB are asked for"
            )
        return tuple(passed)

    def to_json(self) -> dict[str, Any]:
        """Gives plain values for JSON; an infinite ratio, which JSON cannot say, becomes `None`."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [plain(item) for item in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return plain(dataclasses.asdict(self))


class Tally:
    """Counts differences over the slices of a batch.

    Attributes:
        tolerance: the part of a tensor's largest magnitude by which its real values may differ and
            count as equal; codes are equal or not.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        """Starts at nothing.

        Args:
            tolerance: see the attribute.

        Raises:
            ValueError: it is negative or no number.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance={tolerance}: expected 0 or a positive number")
        self.tolerance = tolerance
        self._layers: dict[str, np.ndarray] = {}  # values, differing, largest difference
        self._outputs: list[str] = []
        self._rows = 0
        self._agreeing = self._max_abs = self._magnitude = 0.0

    def __contains__(self, name: str) -> bool:
        """Whether a tensor was compared."""
        return name in self._layers

    def add(self, name: str, found: np.ndarray, expected: np.ndarray) -> None:
        """Compares a tensor of the file.

        Args:
            name: of the tensor.
            found: what the file has, codes or real values.
            expected: what the model has, of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        check_shapes(name, found, expected)
        different, largest = found != expected, 0
        if found.dtype.kind in "iu":
            steps = np.abs(found.astype(np.int32) - expected.astype(np.int32))
            largest = int(steps.max(initial=0))
        elif self.tolerance:
            limit = self.tolerance * np.abs(expected).max(initial=0)
            with np.errstate(invalid="ignore"):
                different &= ~(np.abs(found - expected) <= limit)
        row = self._layers.setdefault(name, np.zeros(3, np.int64))
        row[:2] += (found.size, int(different.sum()))
        row[2] = max(row[2], largest)

    def add_outputs(
        self, found: Sequence[np.ndarray], expected: Sequence[np.ndarray], rows: int
    ) -> None:
        """Compares the real outputs of a slice.

        Args:
            found: of the file, the first axis a multiple of `rows`.
            expected: of the model, of the same shapes.
            rows: of the batch.

        Raises:
            ValueError: the shapes differ.
        """
        for position, (theirs, ours) in enumerate(zip(found, expected, strict=True)):
            name = f"output_{position}"
            self._outputs += [] if name in self._outputs else [name]
            self.add(name, theirs, ours)
            gap = np.abs(np.subtract(theirs, ours, dtype=np.float64))
            self._max_abs = max(self._max_abs, float(gap.max(initial=0)))
            self._magnitude = max(self._magnitude, float(np.abs(ours).max(initial=0)))
        self._rows += rows
        if found[0].ndim < 2:
            self._agreeing += rows
            return
        same = found[0].argmax(-1) == expected[0].argmax(-1)
        self._agreeing += float(same.reshape(rows, -1).mean(-1).sum())

    def result(self) -> Parity:
        """Sums up: the tensors in the order they came, the outputs last."""
        order = [name for name in self._layers if name not in self._outputs] + self._outputs
        layers = tuple(Layer(name, *map(int, self._layers[name])) for name in order)
        values = sum(layer.values for layer in layers)
        return Parity(
            max_lsb=max(layer.max_lsb for layer in layers),
            mismatch_fraction=sum(layer.differing for layer in layers) / max(values, 1),
            layers=layers,
            first_divergence=next((layer.name for layer in layers if layer.differing), None),
            top1_agreement=self._agreeing / self._rows,
            max_abs=self._max_abs,
            max_relative=self._max_abs / self._magnitude if self._magnitude else 0.0,
            samples=self._rows,
        )


def check_shapes(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuses two sides of different shapes.

    Args:
        name: of the tensor.
        found: what the file has.
        expected: what the model has.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(
            f"tensor {name!r} has the shape {list(found.shape)} in the file and "
            f"{list(expected.shape)} in the model: verify with the batch axis first"
        )


def sqnr_db(signal: float, noise: float) -> float:
    """Gives the ratio of two sums of squares in dB.

    Args:
        signal: sum of squares of the real values.
        noise: sum of squares of the differences.

    Returns:
        dB; infinite without noise, minus infinite for noise without a signal.

    Example:
        >>> sqnr_db(100.0, 1.0)
        20.0
    """
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _sentence(parity: Parity) -> str:
    where = f"first in {parity.first_divergence}" if parity.first_divergence else "nowhere"
    return (
        f"{parity.differing:,} values differ ({where}), top-1 agreement "
        f"{parity.top1_agreement:.2%} of {parity.samples:,} rows, largest output difference "
        f"{parity.max_abs:.3g} ({parity.max_relative:.3g} relative)"
    )
