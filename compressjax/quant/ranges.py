"""Ranges: how they are stored beside the variables, and how they become grids.

A range is the two ends of the real values that a tensor takes. The collection `quant` holds one
for each tensor that has its own; `Plan.ranges` says which tensors share it. Ends are widened where
LiteRT could not run the grids they give (`feasible`), so that every stored range can be shipped.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.quant.lattice import Affine
from compressjax.quant.lattice.grid import opaque, ratio, saturate, ste_round
from compressjax.quant.plan import Plan

Range = tuple[jax.Array, jax.Array]
# Under the name of a kernel in the collection `quant`: the params of its grid, if that learns.
GRID = "grid"

# Symmetric codes of int16.
WIDE_CODES = (-32767, 32767)

# XNNPACK's limits, with a margin for rounding: a contraction multiplies its sum by less than 2^8,
# and an addition takes inputs whose scale over the output's is in [2^-10, 2^8).
_LARGEST_MULTIPLIER = 2.0**7
_LARGEST_RATIO = 2.0**7
_SMALLEST_RATIO = 2.0**-9.5


def grid_of(
    low: jax.Array,
    high: jax.Array,
    codes: tuple[int, int] = (-128, 127),
    *,
    symmetric: bool = False,
) -> Affine:
    """Makes the grid of a range, as the LiteRT converters do (Jacob et al., 2018).

    Zero is always representable. A range of nothing but zero gets the step 1/255.

    Args:
      low: smallest real values, of any shape.
      high: largest real values, of that shape.
      codes: the smallest and the largest code.
      symmetric: zero point 0, and a step that both ends fit in.

    Returns:
      The grid; differentiable in the ends, with straight-through rounding of the zero point.

    Example:
      >>> grid = grid_of(jnp.float32(0.0), jnp.float32(255.0))
      >>> float(grid.scale), float(grid.zero_point)
      (1.0, -128.0)
    """
    low, high = jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
    # An end at zero gets no gradient: what is one-sided stays so while ends learn.
    low, high = jnp.where(low < 0, low, 0.0), jnp.where(high > 0, high, 0.0)
    if symmetric:
        low, high = jnp.minimum(low, -high), jnp.maximum(high, -low)
    width = jnp.where(high > low, high - low, jnp.float32(1.0))
    scale = ratio(width, jnp.float32(codes[1] - codes[0]))
    zero_point = jnp.zeros_like(scale) if symmetric else ste_round(codes[0] - ratio(low, scale))
    # Hidden, or a compiler would fold this division into those that use the scale.
    return Affine(opaque(scale, width), saturate(zero_point, *map(float, codes)))


def widened(ends: Range, scale: jax.typing.ArrayLike) -> Range:
    """Stretches a range about zero until its grid has at least a given scale.

    Args:
      ends: low and high, [] or [R].
      scale: smallest scale wanted, [] or [R].

    Returns:
      The range; itself where its scale is large enough.

    Example:
      >>> [round(float(end), 2) for end in widened((jnp.array(-1.0), jnp.array(1.0)), 0.1)]
      [-12.75, 12.75]
    """
    low, high = jnp.minimum(ends[0], 0.0), jnp.maximum(ends[1], 0.0)
    factor = ratio(jnp.asarray(scale, jnp.float32), grid_of(low, high).scale)
    empty = high <= low
    grown = jnp.where(empty, scale * 255.0, high * factor)
    wider = factor > 1.0
    return jnp.where(wider, low * factor, ends[0]), jnp.where(wider, grown, ends[1])


def stacked(ends: Mapping[str, Range]) -> Range:
    """Puts ranges into two vectors, so that arithmetic on all of them is one operation.

    Args:
      ends: low and high by name; at least one.

    Returns:
      Low and high, [R] each, in the order of the names.

    Example:
      >>> stacked({'x': (jnp.float32(-1), jnp.float32(1)), 'y': (jnp.float32(0), jnp.float32(2))})
      (Array([-1.,  0.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    low, high = zip(*ends.values(), strict=True)
    return jnp.stack(low).astype(jnp.float32), jnp.stack(high).astype(jnp.float32)


def unstacked(names: Iterable[str], ends: Range) -> dict[str, Range]:
    """Takes ranges out of two vectors: the inverse of `stacked`.

    Example:
      >>> unstacked(['x'], (jnp.array([-1.0]), jnp.array([1.0])))
      {'x': (Array(-1., dtype=float32), Array(1., dtype=float32))}
    """
    return dict(zip(names, zip(*map(jnp.unstack, ends), strict=True), strict=True))


def feasible(
    plan: Plan, ranges: Mapping[str, Range], scales: Mapping[str, jax.Array]
) -> dict[str, Range]:
    """Widens ranges until LiteRT's kernels take every step.

    This happens where calibration saw a tensor that is (almost) always zero beside a large one.

    Args:
      plan: the plan.
      ranges: the range of each name in `plan.observed`.
      scales: the largest scale of each contraction's kernel, by step name.

    Returns:
      The ranges, mostly unchanged.
    """
    if not ranges:
        return {}
    ends = stacked(ranges)
    scale = dict(zip(ranges, jnp.unstack(grid_of(*ends).scale), strict=True))
    scale |= {name: jnp.float32(fixed) for name, (fixed, _) in plan.fixed.items()}

    def raise_to(tensor: str, least: jax.Array) -> None:
        key = plan.ranges[tensor]
        if key in ranges:
            scale[key] = jnp.maximum(scale[key], least)

    for step in plan.steps:
        inputs = [scale[plan.ranges[name]] for name in step.inputs]
        if step.name in scales:
            raise_to(step.name, inputs[0] * scales[step.name] * (1 / _LARGEST_MULTIPLIER))
        elif step.kind in ("add", "sub"):
            raise_to(step.name, functools.reduce(jnp.maximum, inputs) * (1 / _LARGEST_RATIO))
        elif step.kind in ("mul", "batch_matmul") and len(inputs) == 2:
            raise_to(step.name, inputs[0] * inputs[1] * (1 / _LARGEST_MULTIPLIER))
    for step in reversed(plan.steps):
        if step.kind in ("add", "sub"):
            for name in step.inputs:
                raise_to(name, scale[plan.ranges[step.name]] * _SMALLEST_RATIO)
    return unstacked(ranges, widened(ends, jnp.stack([scale[name] for name in ranges])))


def stored(plan: Plan, variables: Mapping[str, Any]) -> dict[str, Range]:
    """Reads the ranges that a plan needs out of the collection `quant`.

    Args:
      plan: the plan.
      variables: calibrated variables.

    Returns:
      The range of each name in `plan.observed`.

    Raises:
      ValueError: if there is no such collection, or ranges are missing from it.
    """
    if "quant" not in variables:
        raise ValueError(
            "the variables have no collection 'quant': calibrate first, as in "
            "qv = q.calibrate(variables, batches)"
        )
    leaves = tree.paths(variables["quant"])
    if missing := [name for name in plan.observed if f"{name}/low" not in leaves]:
        raise ValueError(
            f"the collection 'quant' has no range for {', '.join(missing[:4])}: it was calibrated "
            "for another function; calibrate this one"
        )
    return {name: (leaves[f"{name}/low"], leaves[f"{name}/high"]) for name in plan.observed}


def collection(
    ranges: Mapping[str, Range], params: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes ranges, and params of grids that learn, as the collection `quant`.

    Args:
      ranges: low and high by name.
      params: params of the grid of a kernel, by the kernel's name.

    Returns:
      Nested dictionaries of float32 scalars, and of the params.

    Example:
      >>> collection({'params/Conv_0/kernel': (jnp.float32(0), jnp.float32(1))})['params'].keys()
      dict_keys(['Conv_0'])
    """
    leaves = {}
    for name, (low, high) in ranges.items():
        leaves[f"{name}/low"] = jnp.asarray(low, jnp.float32)
        leaves[f"{name}/high"] = jnp.asarray(high, jnp.float32)
    for name, grid in (params or {}).items():
        for path, leaf in tree.paths(grid).items():
            leaves[f"{name}/{GRID}/{path}" if path else f"{name}/{GRID}"] = leaf
    return tree.from_paths(leaves)


def check_finite(ranges: Mapping[str, Range]) -> None:
    """Refuses ranges that no grid can be made of.

    Args:
      ranges: low and high by name, not traced.

    Raises:
      ValueError: for NaN, infinity, or a low end above the high end, naming the tensor.

    Example:
      >>> check_finite({'add_0': (float('nan'), 1.0)})
      Traceback (most recent call last):
      ...
      ValueError: the range of 'add_0' is [nan, 1.0], expected finite numbers in order: ...
    """
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(
                f"the range of {name!r} is [{low}, {high}], expected finite numbers in order: look "
                "for NaN or infinity in the batches or the variables"
            )
