"""Units: which positions must be kept or cut together.

Every position of every axis of every value carries the number of a unit. `Units` ties units into
classes (a union-find over arrays, so that tying two axes of a thousand channels is one call) and
remembers which classes may not be cut, and why. A unit also says what its value would hold at that
position if every variable were zero where it is cut: that belongs to the unit, not to its class.
`Units` knows nothing of operations: `channel_rules` does.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

Axes = tuple[np.ndarray, ...]  # one array a dimension: units while coupling, keep masks afterwards

UNKNOWN = 0  # what a value holds at a cut position: anything
ZERO = 1  # only zeros; larger numbers are labels of axes along which all cut positions are alike


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why some units may not be cut.

    Attributes:
      units: the units, `[N]` int64, as they were numbered when the reason arose.
      why: what forbids the cut, in words.
      plain: whether it is the nature of the axis (an input, a window), which needs no explaining.
    """

    units: np.ndarray
    why: str
    plain: bool


class Units:
    """A union-find over numbered units, with frozen classes.

    Example:
      >>> units = Units()
      >>> a, b = units.fresh(3), units.fresh(3)
      >>> units.tie(a, b)
      >>> units.freeze(b[:1], 'an output')
      >>> units.find(b).tolist(), units.frozen(a).tolist()
      ([0, 1, 2], [True, False, False])
    """

    def __init__(self) -> None:
        self._parent = np.arange(1024)
        self._frozen = np.zeros(1024, bool)
        self._rest = np.full(1024, UNKNOWN)
        self._labels: dict[Hashable, int] = {}
        self._count = 0
        self.reasons: list[Reason] = []

    def __len__(self) -> int:
        return self._count

    def fresh(self, number: int, rest: int | np.ndarray = UNKNOWN) -> np.ndarray:
        """Makes new units, tied to nothing.

        Args:
          number: how many.
          rest: what the value holds there if they are cut: `UNKNOWN`, `ZERO` or a label, for all or
            for each.

        Returns:
          Their numbers, `[number]` int64.
        """
        start, self._count = self._count, self._count + number
        if self._count > len(self._parent):
            size = 2 * self._count
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), size)])
            self._frozen = np.concatenate([self._frozen, np.zeros(size - len(self._frozen), bool)])
            self._rest = np.concatenate([self._rest, np.full(size - len(self._rest), UNKNOWN)])
        self._rest[start : self._count] = rest
        return np.arange(start, self._count)

    def fixed(self, number: int, why: str, *, plain: bool = True) -> np.ndarray:
        """Makes new units that may not be cut.

        Args:
          number: how many.
          why: what they are, or what forbids it.
          plain: see `Reason`.

        Returns:
          Their numbers, `[number]` int64.
        """
        units = self.fresh(number)
        self.freeze(units, why, plain=plain)
        return units

    def rest(self, units: np.ndarray) -> np.ndarray:
        """Tells what the value of each unit holds if that unit is cut.

        Args:
          units: unit numbers as rules gave them, any shape; not classes.

        Returns:
          `UNKNOWN`, `ZERO` or a label for each, of the same shape.
        """
        return self._rest[units]

    def label(self, key: Hashable) -> int:
        """Gives the label of an axis along which all cut positions hold the same.

        Args:
          key: what the axis is known by.

        Returns:
          The same number for the same key.
        """
        return self._labels.setdefault(key, len(self._labels) + ZERO + 1)

    def join(self, axes: Sequence[np.ndarray], rest: np.ndarray | None = None) -> np.ndarray:
        """Ties axes of several operands, and gives the units of the axis that comes of them.

        Args:
          axes: units, `[D]` each.
          rest: what the result holds where it is cut, `[D]`; unless given, `ZERO` where all do.

        Returns:
          `[D]` units: the first operand's own, if they say the same.
        """
        for axis in axes[1:]:
            self.tie(axes[0], axis)
        if rest is None:
            zero = np.logical_and.reduce([self.rest(axis) == ZERO for axis in axes])
            rest = np.where(zero, ZERO, UNKNOWN)
            if len(axes) == 1:
                return axes[0]
        if np.array_equal(rest, self.rest(axes[0])) or self.frozen(axes[0]).all():
            return axes[0]
        units = self.fresh(len(rest), rest)
        self.tie(units, axes[0])
        return units

    def find(self, units: np.ndarray) -> np.ndarray:
        """Gives each unit's class, by the smallest unit in it.

        Args:
          units: unit numbers, any shape.

        Returns:
          The class of each, of the same shape.
        """
        roots = self._parent[units]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = self._parent[above]
        self._parent[units] = roots
        return roots

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Makes pairs of units one class each, and that class frozen if either was.

        Args:
          left: unit numbers.
          right: unit numbers that broadcast against `left`.
        """
        if left is right:
            return
        left, right = np.broadcast_arrays(left, right)
        while True:
            left, right = self.find(left), self.find(right)
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            low, high = np.minimum(left, right), np.maximum(left, right)
            self._parent[high] = low
            for side in (low, high):  # within one call a chain may put several links above a unit
                self._frozen[self.find(side[self._frozen[side]])] = True

    def freeze(self, units: np.ndarray, why: str, *, plain: bool = False) -> None:
        """Forbids cutting some units, and all that is or will be tied to them.

        Args:
          units: unit numbers.
          why: what forbids it.
          plain: see `Reason`.
        """
        if units.size:
            self._frozen[self.find(units)] = True
            self.reasons.append(Reason(units, why, plain))

    def frozen(self, units: np.ndarray) -> np.ndarray:
        """Tells which units may not be cut.

        Args:
          units: unit numbers.

        Returns:
          Booleans of the same shape.
        """
        return self._frozen[self.find(units)]


def kept_shape(keeps: Axes) -> tuple[int, ...]:
    """Gives the shape that is left under keep masks.

    Args:
      keeps: one boolean mask a dimension.

    Returns:
      The number of kept positions of each dimension.

    Example:
      >>> kept_shape((np.array([True, False]), np.array([True, True])))
      (1, 2)
    """
    return tuple(int(keep.sum()) for keep in keeps)


def take(array: Any, keeps: Axes) -> Any:
    """Takes the kept positions of an array.

    Args:
      array: a NumPy or JAX array.
      keeps: one boolean mask a dimension.

    Returns:
      The smaller array; the same array if nothing is cut.

    Example:
      >>> take(np.arange(6).reshape(2, 3), (np.array([True, True]), np.array([True, False, True])))
      array([[0, 2],
             [3, 5]])
    """
    numpy = np if isinstance(array, np.ndarray) else jnp
    for axis, keep in enumerate(keeps):
        if not keep.all():
            array = numpy.take(array, np.flatnonzero(keep), axis=axis)
    return array
