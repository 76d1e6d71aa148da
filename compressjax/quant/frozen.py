"""The frozen plan: a quantized network as plain integers, ready to be written to a file.

`quantize` works on traced values and learns; this is what is left when nothing moves any more.
Every number is NumPy, so the exporters need neither the graph nor the calibration that made it.
A real value is `scale * (code - zero_point)`, as in LiteRT (Jacob et al., 2018, section 2.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Codes:
    """A quantized constant: integer codes with their scale.

    Attributes:
        codes: int8 weights in JAX's layout, or an int32 bias; beside int16 activations an int64
            bias, and int16 constants of elementwise steps.
        scale: float32, of shape `[]` (per tensor) or `[O]` (per channel).
        axis: the channel axis of `codes`, `None` when the scale is per tensor.
        zero_point: the code of the real value 0; weights and biases have 0.

    Example:
        >>> import numpy as np
        >>> weight = Codes(np.array([[2, -4]], np.int8), np.array([0.5, 0.25], np.float32), axis=1)
        >>> weight.dequantize()
        array([[ 1., -1.]], dtype=float32)
    """

    codes: np.ndarray
    scale: np.ndarray
    axis: int | None
    zero_point: int = 0

    def dequantize(self) -> np.ndarray:
        """Gives the real values of the codes.

        Returns:
            float32 array of the shape of `codes`.
        """
        scale = np.asarray(self.scale, np.float32)
        if self.axis is not None:
            shape = [1] * self.codes.ndim
            shape[self.axis] = -1
            scale = scale.reshape(shape)
        return (self.codes.astype(np.float32) - np.float32(self.zero_point)) * scale


@dataclasses.dataclass(frozen=True)
class FrozenStep:
    """One LiteRT operation of a frozen plan.

    Attributes:
        name: unique name, also the name of the output tensor in the file.
        kind: what the step computes: `conv`, `depthwise_conv`, `dense`, `add`, `mean`, ...
        inputs: names of earlier steps or of the plan's inputs.
        apply: float semantics `apply(*inputs, *constants)` on real values, with the bias and the
            fused activation; pure jax.numpy. That of a `dense` step takes any rank.
        constants: weight and then bias (integer codes at `s_in * s_w`), or a constant operand.
        scale: output scale, exactly representable in float32.
        zero_point: output zero point.
        out_shape: output shape, with the batch of the example.
        params: what a converter has to be told besides `apply`: `axes` (non-negative) and
            `keepdims` of a `mean`, `lowest` of a `pad` (fill with code -128, not the zero point);
            and what tells siblings apart: `starts` of a `slice`, `permutation` of a `transpose`,
            `padding` of a `pad` or of a `transpose_conv` (explicit), `indices` of a `gather`,
            `window_dimensions` (height, width) of a pool.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    apply: Callable[..., jax.Array]
    constants: tuple[Codes, ...]
    scale: float
    zero_point: int
    out_shape: tuple[int, ...]
    params: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A whole quantized network as LiteRT operations in execution order.

    Attributes:
        inputs: `(name, shape, scale, zero_point)` of each input.
        steps: the operations, each after those that it reads.
        outputs: names of the steps (or inputs) that are returned.
        wide: whether activations are int16, symmetric, in place of int8.
    """

    inputs: tuple[tuple[str, tuple[int, ...], float, int], ...]
    steps: tuple[FrozenStep, ...]
    outputs: tuple[str, ...]
    wide: bool = False

    def __post_init__(self) -> None:
        """Refuses names that do not exist and grids that LiteRT cannot hold."""
        known: set[str] = set()
        grids: list[tuple[str, tuple[str, ...], float, int]]
        grids = [(name, (), scale, point) for name, _, scale, point in self.inputs]
        grids += [(step.name, step.inputs, step.scale, step.zero_point) for step in self.steps]
        for name, reads, scale, zero_point in grids:
            if name in known:
                raise ValueError(f"two values of the frozen plan are called {name!r}")
            for missing in set(reads) - known:
                raise ValueError(f"step {name!r} reads {missing!r}, which no earlier step makes")
            if not (math.isfinite(scale) and np.float32(scale) > 0):
                raise ValueError(
                    f"{name!r} has the scale {scale}, expected a positive finite float32: "
                    "calibrate on batches without NaN or infinities"
                )
            lowest, highest = (0, 0) if self.wide else (-128, 127)
            if not lowest <= zero_point <= highest:
                raise ValueError(
                    f"{name!r} has the zero point {zero_point}, outside [{lowest}, {highest}]"
                )
            known.add(name)
        for missing in set(self.outputs) - known:
            raise ValueError(f"the frozen plan returns {missing!r}, which no step makes")

    def quantization(self) -> dict[str, tuple[float, int]]:
        """Gives scale and zero point of every activation by name.

        Returns:
            `{name: (scale, zero_point)}` of the inputs and of the steps.
        """
        table = {name: (scale, zero_point) for name, _, scale, zero_point in self.inputs}
        return table | {step.name: (step.scale, step.zero_point) for step in self.steps}
