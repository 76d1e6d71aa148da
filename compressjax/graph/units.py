"""Units: which positions must be kept or cut together.

Every position of every axis of every value carries the number of a unit. `Units` ties units into
classes (a union-find over arrays, so that tying two axes of a thousand channels is one call) and
remembers which classes may not be cut, and why. It knows nothing of operations:
`channel_rules` does.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

Axes = tuple[np.ndarray, ...]  # one array a dimension: units while coupling, keep masks afterwards


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
        self._count = 0
        self.reasons: list[Reason] = []

    def __len__(self) -> int:
        return self._count

    def fresh(self, number: int) -> np.ndarray:
        """Makes new units, tied to nothing.

        Args:
          number: how many.

        Returns:
          Their numbers, `[number]` int64.
        """
        start, self._count = self._count, self._count + number
        if self._count > len(self._parent):
            size = 2 * self._count
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), size)])
            self._frozen = np.concatenate([self._frozen, np.zeros(size - len(self._frozen), bool)])
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
