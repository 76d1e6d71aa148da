"""Collects the nodes of an ONNX graph, in codes or in reals.

A quantized value is a tensor of codes; an operation on it stands between DequantizeLinear and
QuantizeLinear with the exact scales of the frozen plan (the form that runtimes call QDQ and fuse
into integer kernels). Codes are the plan's plus 128, in uint8: ONNX Runtime's kernels for x86 take
uint8 times int8, and int8 times int8 is left to float there. A float value is itself. `steps.py`
says which operation a step is, and need not know which of the two it writes.

ONNX convolves and pools with channels first, JAX keeps them last. So every value of rank 4 may be
held in both layouts, and a Transpose is written only where a step asks for the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compressjax.export._require import require
from compressjax.quant.frozen import Codes
from compressjax.quant.plan import Step

PLANAR = "/planar"  # ends the name of a tensor whose channels come first
OFFSET = 128  # from a code of the plan to a code in the model
_TO_PLANAR, _FROM_PLANAR = (0, 3, 1, 2), (0, 2, 3, 1)
_CODES = (0, 255)


def shifted(codes: np.ndarray) -> np.ndarray:
    """Gives the codes in the model of int8 codes of the plan: uint8, 128 more.

    Example:
        >>> shifted(np.array([-128, 0, 127], np.int8))
        array([  0, 128, 255], dtype=uint8)
    """
    return (codes.astype(np.int16) + OFFSET).astype(np.uint8)


class Writer:
    """The nodes and constants so far.

    Attributes:
        shapes: of each value, channels last.
        grids: scale and zero point of each value; `None` for a float model.
        nodes: ONNX nodes in order.
        constants: ONNX initializers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        grids: Mapping[str, tuple[float, int]] | None,
    ) -> None:
        """Starts an empty graph.

        Args:
            shapes: of each value of the plan.
            grids: scale and zero point of each; `None` for a float model.
        """
        self.shapes, self.grids = shapes, grids
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._held: dict[tuple[str, bool], str] = {}
        self._taken: set[str] = set()
        self._helper = require("onnx.helper", extra="onnx")
        self._from_array = require("onnx.numpy_helper", extra="onnx").from_array

    def enter(self, name: str) -> None:
        """Takes a float input of the graph; its codes are called `name/codes`."""
        self._taken.add(name)
        self._held[name, False] = name
        if self.grids is not None:
            codes = f"{name}/codes"
            self._held[name, False] = self.node("QuantizeLinear", [name, *self._grid(name)], codes)

    def leave(self, value: str, output: str) -> None:
        """Gives a value as a float output of the graph."""
        tensor = self.tensor(value, planar=False)
        if self.grids is None:
            self.node("Identity", [tensor], output)
        else:
            self.node("DequantizeLinear", [tensor, *self._grid(value)], output)

    def planar(self, value: str) -> bool:
        """Tells whether a value is held with channels first only."""
        return (value, False) not in self._held

    def tensor(self, value: str, *, planar: bool) -> str:
        """Gives the tensor of a value: its codes, or its reals in a float model.

        Args:
            value: name in the plan.
            planar: channels first, of a value of rank 4.

        Returns:
            Name of the tensor.
        """
        if (value, planar) not in self._held:
            order = {"perm": _TO_PLANAR if planar else _FROM_PLANAR}
            name = value + PLANAR if planar else value
            source = self._held[value, not planar]
            self._held[value, planar] = self.node("Transpose", [source], name, order)
        return self._held[value, planar]

    def real(self, value: str, *, planar: bool) -> str:
        """Gives the real values of a value; of codes by a DequantizeLinear of its own."""
        return self.dequantized(value, self.tensor(value, planar=planar))

    def dequantized(self, value: str, tensor: str) -> str:
        """Gives the real values of a tensor on the grid of a value."""
        if self.grids is None:
            return tensor
        return self.node("DequantizeLinear", [tensor, *self._grid(value)], f"{tensor}/real")

    def rounded(self, step: Step, real: str) -> str:
        """Gives the codes of real values on the grid of a step, without its activation."""
        if self.grids is None:
            return real
        return self.node("QuantizeLinear", [real, *self._grid(step.name)], f"{step.name}/rounded")

    def put(self, step: Step, tensor: str, *, planar: bool) -> None:
        """Takes codes on the grid of a step (or reals) as what the step puts out.

        Args:
            step: its fused activation is applied.
            tensor: the last node's output; it is renamed.
            planar: its layout.
        """
        name = step.name + PLANAR if planar else step.name
        bounds = self._bounds(step)
        if bounds is None:
            self._rename(tensor, name)
        elif self.grids is None and (step.lo, step.hi) == (0.0, None):
            self.node("Relu", [tensor], name)
        else:
            ends = [
                "" if bound is None else self.constant(f"{step.name}/{end}", bound)
                for end, bound in zip(("lowest", "highest"), bounds, strict=True)
            ]
            self.node("Clip", [tensor, *ends], name)
        self._held[step.name, planar] = name

    def put_real(self, step: Step, real: str, *, planar: bool) -> None:
        """Takes real values as what a step puts out, rounded to its grid."""
        self.put(step, self.rounded(step, real), planar=planar)

    def weight(
        self,
        name: str,
        value: Codes | np.ndarray,
        layout: Callable[[np.ndarray], np.ndarray],
        axis: int = 0,
        *,
        affine: bool = False,
    ) -> str:
        """Adds a constant operand.

        Args:
            name: of the tensor.
            value: codes with their scale, or reals.
            layout: brings the array into ONNX's layout.
            axis: of the channels after that, where each has a scale.
            affine: store int8 codes as those of activations are.

        Returns:
            Name of its real values.
        """
        if not isinstance(value, Codes):
            return self.constant(name, layout(value))
        scale, codes, point = np.asarray(value.scale, np.float32), value.codes, value.zero_point
        if affine:
            codes, point = shifted(codes), point + OFFSET
        parts = [
            self.constant(name, layout(codes)),
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero_point", np.full(scale.shape, point, codes.dtype)),
        ]
        attributes = {"axis": axis} if scale.ndim else {}
        return self.node("DequantizeLinear", parts, f"{name}/real", attributes)

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds an initializer and gives its name, which may be made unique."""
        name = self._fresh(name)
        self.constants.append(
            self._from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Adds a node with one output and gives the output's name, which may be made unique."""
        output = self._fresh(output)
        node = self._helper.make_node(op, list(inputs), [output], name=output)
        for name, value in (attributes or {}).items():
            node.attribute.append(self._helper.make_attribute(name, value))
        self.nodes.append(node)
        return output

    def _bounds(self, step: Step) -> list[np.ndarray | None] | None:
        """The fused activation's bounds, as codes or reals; `None` if the grid keeps them."""
        bounds = (step.lo, step.hi)
        if self.grids is None:
            if bounds == (None, None):
                return None
            return [None if bound is None else np.asarray(bound, np.float32) for bound in bounds]
        scale, zero_point = self.grids[step.name]
        codes: list[np.ndarray | None] = []
        for bound, edge in zip(bounds, _CODES, strict=True):
            code = edge
            if bound is not None:
                steps = int(np.rint(np.float32(bound) / np.float32(scale)))
                code = min(max(steps + zero_point + OFFSET, _CODES[0]), _CODES[1])
            codes.append(None if code == edge else np.asarray(code, np.uint8))
        return None if codes == [None, None] else codes

    def _grid(self, value: str) -> list[str]:
        """Names of scale and zero point of a value, which are written once."""
        assert self.grids is not None
        scale, zero_point = self.grids[value]
        names = [f"{value}/scale", f"{value}/zero_point"]
        if names[0] not in self._taken:
            self.constant(names[0], np.asarray(scale, np.float32))
            self.constant(names[1], np.asarray(zero_point + OFFSET, np.uint8))
        return names

    def _rename(self, tensor: str, name: str) -> None:
        node = self.nodes[-1]
        assert list(node.output) == [tensor], (tensor, name)
        name = self._fresh(name)
        node.output[0], node.name = name, name

    def _fresh(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._taken:
            unique, count = f"{name}#{count}", count + 1
        self._taken.add(unique)
        return unique
