"""Finds the frozen step behind every operation of a converted file.

The file and the plan are both graphs; the labels of `provisional.py` say which values may be the
same, and the operation's kind and operands decide among them. A converter may fold a pad into a
convolution, drop or add reshapes, and change the order of operations: all of that is seen through
here. What is not seen through is an error that names the operation or the step.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressjax.export import flatbuffer
from compressjax.export.provisional import folds, names_by_scale
from compressjax.quant.frozen import Frozen, FrozenStep

_OPS = {
    "conv": "CONV_2D DEPTHWISE_CONV_2D",
    "depthwise_conv": "DEPTHWISE_CONV_2D CONV_2D",
    "dense": "FULLY_CONNECTED CONV_2D",
    "batch_matmul": "BATCH_MATMUL FULLY_CONNECTED",
    "max_pool": "MAX_POOL_2D",
    "avg_pool": "AVERAGE_POOL_2D",
    "concatenate": "CONCATENATION",
    "pad": "PAD PADV2",
    "reshape": "RESHAPE SQUEEZE EXPAND_DIMS",
    "transpose": "TRANSPOSE RESHAPE",
    "slice": "SLICE STRIDED_SLICE",
    "relu": "RELU RELU6 RELU_N1_TO_1",
    "requantize": "QUANTIZE",
    "gather": "GATHER GATHER_ND",
    "resize_nearest": "RESIZE_NEAREST_NEIGHBOR",
    "elu": "LEAKY_RELU",
    "clamp": "LEAKY_RELU",
}
_OPERAND = {
    "slice": "starts", "pad": "padding", "transpose": "permutation", "gather": "indices",
}  # fmt: skip
_VIEWS = frozenset("RESHAPE SQUEEZE EXPAND_DIMS TRANSPOSE PAD PADV2".split())


@dataclasses.dataclass(frozen=True)
class Matched:
    """What each part of a converted file is in the plan.

    Attributes:
        names: tensor -> (name to write, value of the plan whose grid it has).
        steps: operators with the names of their steps.
        inputs: float tensors of the graph's inputs, in the plan's order.
        outputs: float tensors of the graph's outputs, in the plan's order.
        entry: the QUANTIZE operators of the inputs.
        exits: the DEQUANTIZE operators of the outputs.
        constants: tensors with data that are a `constant` of the plan, with its name; they are in
            `names` too.
    """

    names: dict[int, tuple[str, str]]
    steps: list[tuple[Any, str]]
    inputs: list[int]
    outputs: list[int]
    entry: list[Any]
    exits: list[Any]
    constants: dict[int, str]


def match(model: Any, plan: Frozen) -> Matched:
    """Recognises the tensors of a file by the labels of its plan.

    Args:
        model: the unpacked file that a converter made of `plan`.
        plan: a plan made by `provisional.label`.

    Returns:
        The correspondence.

    Raises:
        ValueError: an operation has no step, or a step no operation.
    """
    return _Matcher(model, plan).run()


class _Matcher:
    def __init__(self, model: Any, plan: Frozen) -> None:
        self.model, self.plan = model, plan
        self.graph = model.subgraphs[0]
        self.labels = names_by_scale(plan)
        self.scales = np.array(sorted(self.labels))
        self.steps = {step.name: step for step in plan.steps}
        self.free = dict(self.steps)
        self.folds = {step.name for step in plan.steps if folds(plan, step)}
        self.found = Matched({}, [], [], [], [], [], {})
        signature = model.signatureDefs[0]
        self.entries = {m.tensorIndex: flatbuffer.text(m.name) for m in signature.inputs}
        self.exits = {m.tensorIndex: flatbuffer.text(m.name) for m in signature.outputs}

    def run(self) -> Matched:
        self._find_constants()
        for index, operator in enumerate(self.graph.operators):
            op = flatbuffer.op_name(self.model, operator)
            if op == "QUANTIZE" and operator.inputs[0] in self.entries:
                self._enter(operator)
            elif op == "DEQUANTIZE" and operator.outputs[0] in self.exits:
                self.found.exits.append(operator)
            else:
                self._operation(index, operator, op)
        lost = [step for step in self.free.values() if step.name not in self.folds]
        if lost:
            raise ValueError(
                f"the converter left no operation for step {lost[0].name!r} ({lost[0].kind} of "
                f"{list(lost[0].inputs)}): nothing in the file has its label"
            )
        self._fuse_clamps()
        by_name = {name: tensor for tensor, name in self.entries.items()}
        self.found.inputs.extend(by_name[name] for name, *_ in self.plan.inputs)
        by_name = {name: tensor for tensor, name in self.exits.items()}
        self.found.outputs.extend(by_name[f"output_{i}"] for i in range(len(self.plan.outputs)))
        self._check_exits()
        return self.found

    def _find_constants(self) -> None:
        """Recognises the tensors with data that are values of the plan, in whatever layout."""
        wanted = [step for step in self.plan.steps if step.kind == "constant"]
        read = {int(i) for op in self.graph.operators for i in op.inputs if i >= 0}
        for tensor in sorted(read) if wanted else ():
            if not self._is_int8(tensor):
                continue
            data = flatbuffer.constant(self.model, self.graph.tensors[tensor])
            for step in wanted:
                pattern = step.constants[0].codes
                if self._label(tensor) != step.scale:
                    continue
                if data is not None and same_layout(pattern, data, pattern) is not None:
                    self.found.names[tensor] = (f"{step.name}/codes", step.name)
                    self.found.constants[tensor] = step.name

    def _enter(self, operator: Any) -> None:
        name = self.entries[operator.inputs[0]]
        self.found.entry.append(operator)
        self.found.names[int(operator.outputs[0])] = (name, name)

    def _operation(self, index: int, operator: Any, op: str) -> None:
        output = int(operator.outputs[0])
        sources = [self.found.names[i][1] for i in operator.inputs if i in self.found.names]
        step = self._step(op, sources, operator)
        if step is not None:
            del self.free[step.name]
            moved = op == "GATHER_ND"  # stands between transposes: not the step's own layout
            self.found.names[output] = (f"{step.name}/moved" if moved else step.name, step.name)
            self.found.steps.append((operator, step.name))
        elif op in _VIEWS and len(sources) == 1 and self._is_int8(output):
            self.found.names[output] = (f"{sources[0]}/view_{output}", sources[0])
        else:
            kind = self.graph.tensors[output].type
            raise ValueError(
                f"operation {index} ({op}) of the converted file, which reads {sources}, has no "
                f"step in the plan (its result has the type number {kind}; 9 is int8). "
                "Quantize it with a step of its own, or write the layer without it."
            )

    def _fuse_clamps(self) -> None:
        """A clamp that its producer does gives the producer's tensor its name."""
        tensors = {name: tensor for tensor, (name, _) in self.found.names.items()}
        for step in self.free.values():
            if step.kind in ("relu", "relu6") and step.inputs[0] in tensors:
                tensors[step.name] = tensors.pop(step.inputs[0])
                self.found.names[tensors[step.name]] = (step.name, step.name)

    def _is_int8(self, tensor: int) -> bool:
        return flatbuffer.dtype(self.graph.tensors[tensor]) == np.int8

    def _step(self, op: str, sources: list[str], operator: Any) -> FrozenStep | None:
        """The unused step with the output's label, this operation, and these operands."""
        tensor, nearest = self.graph.tensors[operator.outputs[0]], self._label(operator.outputs[0])
        if nearest is None:
            return None
        roots = sorted(map(self._root, sources))
        steps = [self.free[name] for name in self.labels[nearest] if name in self.free]
        steps = [
            step for step in steps
            if op in _OPS.get(step.kind, step.kind.upper()).split()
            and sorted(map(self._root, step.inputs)) == roots
        ]  # fmt: skip
        shape = tuple(int(size) for size in tensor.shape)
        if op in _VIEWS:  # converters add views of their own, with shapes that no step has
            steps = [step for step in steps if _long(step.out_shape) == _long(shape)]
        order = list(self.steps)
        steps.sort(
            key=lambda step: (
                step.out_shape != shape,
                not self._agrees(step, operator),
                order.index(step.name),
            )
        )
        return steps[0] if steps else None

    def _label(self, tensor: int) -> float | None:
        """The label that a tensor has, if it has one."""
        quantization = self.graph.tensors[tensor].quantization
        if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
            return None
        scale = float(quantization.scale[0])
        nearest = float(self.scales[np.abs(self.scales - scale).argmin()])
        return None if abs(nearest - scale) > 1e-5 * nearest else nearest

    def _agrees(self, step: FrozenStep, operator: Any) -> bool:
        """Whether an operation has the attributes of a step: tells siblings on one grid apart."""
        params: Mapping[str, Any] = step.params
        if step.kind in ("max_pool", "avg_pool"):
            options = operator.builtinOptions
            window = [options.filterHeight, options.filterWidth]
            return window == list(params.get("window_dimensions", window))
        if step.kind not in _OPERAND or len(operator.inputs) < 2:
            return True
        found = flatbuffer.constant(self.model, self.graph.tensors[operator.inputs[1]])
        expected = params.get(_OPERAND[step.kind])
        return (
            found is None or expected is None or np.array_equal(np.ravel(found), np.ravel(expected))
        )

    def _root(self, name: str) -> str:
        """The value that a chain of foldable steps starts from."""
        while name in self.folds and self.steps[name].inputs:
            name = self.steps[name].inputs[0]
        return name

    def _check_exits(self) -> None:
        """The file must return the values that the plan returns."""
        for operator in self.found.exits:
            position = int(self.exits[operator.outputs[0]].removeprefix("output_"))
            expected = self.plan.outputs[position]
            value = self.found.names.get(int(operator.inputs[0]), ("", ""))[1]
            if self._root(value) != self._root(expected):
                raise ValueError(f"output {position} returns {value!r}, the plan {expected!r}")


def same_layout(pattern: np.ndarray, old: np.ndarray, codes: np.ndarray) -> np.ndarray | None:
    """Moves the axes of some codes as a converter moved those of their label.

    Args:
        pattern: the label's codes.
        old: what the converter made of them.
        codes: in the layout of `pattern`.

    Returns:
        The codes in the layout of `old`; `None` where that is no layout of `pattern`.

    Example:
        >>> pattern, codes = np.array([[10, 20], [30, 40]], np.int8), np.array([[5, 6], [7, 8]])
        >>> same_layout(pattern, pattern.T, codes).tolist(), same_layout(pattern, -pattern, codes)
        ([[5, 7], [6, 8]], None)
    """
    wide = old.astype(np.int16)
    for order in itertools.permutations(range(pattern.ndim)):
        moved = pattern.transpose(order)
        if moved.size == old.size:
            if (np.abs(moved.reshape(old.shape).astype(np.int16) - wide) <= 1).all():
                return np.ascontiguousarray(codes.transpose(order).reshape(old.shape))
    return None


def _long(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
