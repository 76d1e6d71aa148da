"""The plan of a quantized network: LiteRT-level steps that still point into the graph.

`placement` makes a plan from a graph; `steps` says what each kind of step computes; `quantize` runs
plans. A plan holds no arrays: weights are values of the graph, evaluated from the variables of each
call, so that gradients reach them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from compressjax.graph import Chain, Graph, Value


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A quantized operand that depends on variables alone.

    Attributes:
      value: where it stands in the graph.
      axis: channel axis after `layout`, for one scale per channel; `None` for one scale.
      layout: brings the graph's array into the layout of the step.
      chain: per-channel affine operations after a contraction, multiplied into its kernel.
      chain_axis: the channel axis those operations see.
    """

    value: Value
    axis: int | None
    layout: Callable[[jax.Array], jax.Array]
    chain: Chain = ()
    chain_axis: int = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation that LiteRT runs.

    Attributes:
      name: name of the step and of the tensor that it puts out.
      kind: `conv`, `depthwise_conv`, `dense`, `add`, ...: see `steps`.
      inputs: tensor names; inputs of the plan or earlier steps. A `constant` has none: it is a
        tensor, and no operation.
      shape: the output's shape.
      params: what the kind needs to know: strides, axes, sizes.
      lo: lower bound of a fused activation, or `None`.
      hi: upper bound of a fused activation, or `None`.
      constant: the kernel of a contraction, the constant operand of an elementwise step, or what a
        `constant` holds.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lo: float | None = None
    hi: float | None = None
    constant: Constant | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A quantized network.

    Attributes:
      graph: the graph that the plan was made from.
      inputs: the graph's inputs by name.
      steps: in the order they run.
      outputs: tensor names of the function's outputs, flat.
      ranges: for every tensor, the name of the tensor whose range it has; tensors that must share
        scale and zero point have the same one.
      fixed: scale and zero point of ranges that LiteRT fixes (softmax, logistic, tanh).
    """

    graph: Graph
    inputs: Mapping[str, Value]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    ranges: Mapping[str, str]
    fixed: Mapping[str, tuple[float, int]]

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the ranges that calibration has to find."""
        return tuple(dict.fromkeys(key for key in self.ranges.values() if key not in self.fixed))
