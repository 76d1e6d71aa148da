"""What to quantize with: the grid of every kernel and the format of every tensor, by path.

A `Spec` says nothing about how values are found (observers) or which operations there are
(placement). Rules are ordered: the first glob that matches a name decides, and a glob that matches
nothing is an error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from compressjax import tree
from compressjax.quant import grids
from compressjax.quant.grids import Grid, integer
from compressjax.quant.learning import Learning
from compressjax.quant.plan import Plan
from compressjax.quant.steps import CONTRACTIONS, KINDS

Rules = tuple[tuple[str, Any], ...]


class Activations(NamedTuple):
    """How a tensor between two steps is stored: integers with one scale for the whole tensor.

    Attributes:
      bits: of a code, 2 to 16.
      symmetric: zero point 0 and as many codes below as above it, as LiteRT's int16 has it;
        otherwise affine, as LiteRT's int8.
      learning: how the ends of the range learn by gradients; `None` where they are observed.
    """

    bits: int = 8
    symmetric: bool = False
    learning: Learning | None = None

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        half = 2 ** (self.bits - 1)
        return (1 - half if self.symmetric else -half), half - 1

    @property
    def litert(self) -> bool:
        """Whether LiteRT's int8 tensors hold this format."""
        return self.bits == 8 and not self.symmetric

    @property
    def wide(self) -> bool:
        """Whether LiteRT's int16 tensors hold this format."""
        return self.bits == 16 and self.symmetric


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Inputs of kernels are quantized when the network runs, to the range each example has.

    Attributes:
      bits: of a code.
    """

    bits: int = 8


class Spec(NamedTuple):
    """How to quantize.

    Attributes:
      weights: `(glob, grid)` on the names of kernels; the first that matches decides, and a grid
        `None` leaves a kernel as it is.
      activations: `(glob, Activations)` on the names of tensors; or one `Dynamic` for all; or
        `None`, to quantize weights alone.
      decay: weight of the past when `observe` updates a range.
      operands: dtype in which codes enter convolutions and dots, float32 or bfloat16. Both hold
        them exactly; sums are float32 either way.
    """

    weights: Rules
    activations: Rules | Dynamic | None
    decay: float = 0.99
    operands: Any = jnp.float32


class Layout(NamedTuple):
    """A spec applied to a plan.

    Attributes:
      weights: the grid of each contraction's kernel, by step name; `None` leaves it as it is.
      activations: the format of each range, by the name of the range.
      exact: the names of the steps whose LiteRT kernels are known exactly, with int8 tensors or
        with int16 ones; the others are simulated.
    """

    weights: Mapping[str, Grid | None]
    activations: Mapping[str, Activations]
    exact: frozenset[str]


def int8(
    *,
    per_channel: bool = True,
    decay: float = 0.99,
    weights: Mapping[str, Grid | None] | None = None,
    activations: Mapping[str, Activations] | None = None,
    learning: Learning | None = None,
    operands: Any = jnp.float32,
) -> Spec:
    """Specifies LiteRT's int8: symmetric weights, affine activations (Jacob et al., 2018).

    Args:
      per_channel: one weight scale for each output channel; otherwise one for each kernel.
      decay: weight of the past when `observe` updates a range, in [0, 1).
      weights: other grids for some kernels, by glob; the first that matches decides.
      activations: other formats for some tensors, by glob.
      learning: `lsq()` or `pact()`, to learn ranges by gradients; otherwise they are observed.
      operands: dtype in which codes enter convolutions and dots, float32 or bfloat16.

    Raises:
      ValueError: if `decay` is outside [0, 1), or `operands` is another dtype.

    Example:
      >>> int8().weights[-1][1].name
      'int8 per channel'
    """
    return uniform(
        weights=8,
        activations=8,
        per_channel=per_channel,
        decay=decay,
        rules=weights,
        activation_rules=activations,
        learning=learning,
        operands=operands,
    )


def uniform(
    *,
    weights: int,
    activations: int,
    per_channel: bool = True,
    decay: float = 0.99,
    rules: Mapping[str, Grid | None] | None = None,
    activation_rules: Mapping[str, Activations] | None = None,
    learning: Learning | None = None,
    operands: Any = jnp.float32,
) -> Spec:
    """Specifies integers of any width (Krishnamoorthi, 2018); eight or fewer weight bits ship.

    With 8-bit activations LiteRT runs the network, and the forward pass is its arithmetic. Other
    widths are simulated, as fake quantization does it.

    Args:
      weights: bits of a weight, 2 to 16, symmetric.
      activations: bits of an activation, 2 to 16, affine.
      per_channel: one weight scale for each output channel; otherwise one for each kernel.
      decay: weight of the past when `observe` updates a range, in [0, 1).
      rules: other grids for some kernels, by glob; the first that matches decides.
      activation_rules: other formats for some tensors, by glob.
      learning: `lsq()` or `pact()`, to learn ranges by gradients; otherwise they are observed.
      operands: dtype in which codes enter convolutions and dots, float32 or bfloat16.

    Raises:
      ValueError: if bits are outside 2 to 16, `decay` is outside [0, 1), or `operands` is another
        dtype.

    Example:
      >>> uniform(weights=4, activations=8).activations
      (('**', Activations(bits=8, symmetric=False, learning=None)),)
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay}, expected a number in [0, 1)")
    if jnp.dtype(operands) not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"operands are {jnp.dtype(operands)}, expected float32 or bfloat16")
    if not 2 <= activations <= 16:
        raise ValueError(f"activations have {activations} bits, expected 2 to 16")
    granularity = grids.per_channel() if per_channel else grids.per_tensor()
    grid = (
        learning.kernel(weights, granularity)
        if learning
        else integer(weights, granularity=granularity)
    )
    default = Activations(activations, learning=learning)
    return Spec(
        weights=(*(rules or {}).items(), ("**", grid)),
        activations=(*(activation_rules or {}).items(), ("**", default)),
        decay=decay,
        operands=operands,
    )


def int16x8(*, decay: float = 0.99) -> Spec:
    """Specifies 16-bit symmetric activations with 8-bit weights per channel, as LiteRT's 16x8.

    LiteRT runs it on its builtin kernels, with 64-bit sums.

    Args:
      decay: weight of the past when `observe` updates a range, in [0, 1).

    Raises:
      ValueError: if `decay` is outside [0, 1).

    Example:
      >>> int16x8().activations[0][1].codes
      (-32767, 32767)
    """
    spec = int8(decay=decay)
    return spec._replace(activations=(("**", Activations(16, symmetric=True)),))


def weight_only(
    grid: Grid | None = None, *, rules: Mapping[str, Grid | None] | None = None
) -> Spec:
    """Specifies quantized weights with float arithmetic; any function can be quantized so.

    Args:
      grid: of every kernel; int8 per channel by default.
      rules: other grids for some kernels, by glob; the first that matches decides.

    Example:
      >>> weight_only(integer(4)).activations is None
      True
    """
    default = integer(8) if grid is None else grid
    return Spec(weights=(*(rules or {}).items(), ("**", default)), activations=None)


def dynamic(grid: Grid | None = None, *, rules: Mapping[str, Grid | None] | None = None) -> Spec:
    """Specifies int8 arithmetic with ranges taken when the network runs; needs no calibration.

    Every example's input of a convolution gets its own affine grid, by XNNPACK's own formula; a
    fully connected layer has one for every row, and a convolution with a window of one pixel and
    no strides or groups one for every pixel, as XNNPACK runs it. The inputs of depthwise
    convolutions (also those of a single channel), and of products with batch axes or the kernel on
    the left, stay float: LiteRT has no fast kernel for them. For equal inputs the codes are those
    on the device; sums are floats, so a code may flip where a value lies between two.

    Args:
      grid: of every kernel; int8 per channel by default.
      rules: other grids for some kernels, by glob; the first that matches decides.

    Example:
      >>> dynamic().activations
      Dynamic(bits=8)
    """
    return weight_only(grid, rules=rules)._replace(activations=Dynamic())


def layout(spec: Spec, plan: Plan) -> Layout:
    """Applies a spec with static activations to a plan.

    Args:
      spec: with static activations.
      plan: the plan.

    Returns:
      What every kernel and every range is stored in.

    Raises:
      ValueError: if a glob matches nothing, or a format has no meaning where LiteRT fixes a grid.

    Example:
      >>> from compressjax.quant.quantize import quantize
      >>> import jax.numpy as jnp
      >>> q = quantize(lambda v, x: x @ v['kernel'], uniform(weights=4, activations=8))
      >>> found = layout(uniform(weights=4, activations=8),
      ...                q.plan({'kernel': jnp.ones((2, 2))}, jnp.ones((1, 2))))
      >>> found.weights['kernel'].name, sorted(found.exact)
      ('int4 per channel', ['kernel'])
    """
    assert isinstance(spec.activations, tuple)
    kernels = [step.name for step in plan.steps if step.kind in CONTRACTIONS]
    weights = tree.assign(spec.weights, kernels, what="weights") if kernels else {}
    names = list(dict.fromkeys(plan.ranges.values()))
    activations = tree.assign(spec.activations, names, what="activations", default=Activations())

    def exact(step: Any) -> bool:
        grid = weights.get(step.name)
        storable = step.name not in weights or (grid is not None and grid.codes is not None)
        ends = [activations[plan.ranges[name]] for name in (*step.inputs, step.name)]
        narrow = all(each.litert for each in ends)
        wide = KINDS[step.kind].wide is not None and all(each.wide for each in ends)
        return storable and (narrow or wide)

    return Layout(weights, activations, frozenset(step.name for step in plan.steps if exact(step)))
