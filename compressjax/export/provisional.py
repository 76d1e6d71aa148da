"""Gives a converter a plan whose numbers are labels, so that its work can be recognised.

A converter chooses and fuses operations well, but it recomputes scales, rounds weights, folds
pads and forgets names. So it never sees the real numbers: each activation that has a scale of
its own gets a scale that nobody else has, and each weight gets pseudo-random codes whose layout
can be read back. `rewrite.py` recognises every tensor by its label and writes the real numbers.
What the converter does thus depends on the structure of a plan alone, never on its values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.export.pointwise import is_pixel, pixels_convolved
from compressjax.quant.frozen import Codes, Frozen, FrozenStep

SAME_SCALE = frozenset(
    "max_pool avg_pool pad reshape transpose slice split concatenate gather resize reverse "
    "maximum minimum reduce_max reduce_min resize_nearest".split()
)
_OWN_SCALE = frozenset({"constant", "requantize"})
WEIGHTED = frozenset({"conv", "depthwise_conv", "transpose_conv", "dense"})
FIXED_SCALE = {"logistic": (1 / 256, -128), "softmax": (1 / 256, -128), "tanh": (1 / 128, 0)}
_WIDE_FIXED = (2.0**-15, 0)  # of the same functions in int16
# What a converter is told in place of a function that it would take apart, or has no name for.
_STAND_INS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "elu": jax.nn.leaky_relu,
    "leaky_relu": jax.nn.leaky_relu,
    "clamp": jax.nn.leaky_relu,
}
_WEIGHT_SCALE = np.float32(2**-7)
_TRIES = 2000
_MARK = 1024  # labels are 1, 1 + 1/1024, 1 + 2/1024, ...: exact in float32, far apart


def label(plan: Frozen) -> Frozen:
    """Replaces the numbers of a plan by labels.

    Args:
        plan: the frozen plan.

    Returns:
        A plan of the same structure. Values that LiteRT lets share one scale have one label.

    Raises:
        ValueError: the operands of a step that must share one scale do not, or a step with a
            fixed scale has another.
    """
    for name in plan.outputs:
        if plan.outputs.count(name) > 1:
            raise ValueError(f"the model returns {name!r} twice; return each value once")
    plan = _narrowed(plan) if plan.wide else plan
    scales = _labels(plan)
    points = {name: point for name, (_, point) in plan.quantization().items()}
    steps = []
    seen: dict[float, list[np.ndarray]] = {}
    for index, step in enumerate(plan.steps):
        rng = np.random.default_rng(index)  # equal constants would be merged into one
        if step.kind == "constant":
            own = _tensor(step.constants[0], scales[step.name], rng, seen)
            steps.append(dataclasses.replace(step, constants=(own,), scale=scales[step.name]))
            continue
        weight, source = step.kind in WEIGHTED, scales[step.inputs[0]]
        constants = tuple(_constant(codes, source, rng, weight=weight) for codes in step.constants)
        steps.append(dataclasses.replace(step, constants=constants, scale=scales[step.name]))
    inputs = tuple((name, shape, scales[name], points[name]) for name, shape, _, _ in plan.inputs)
    return Frozen(inputs, tuple(steps), plan.outputs)


def evaluate(
    plan: Frozen,
    inputs: Sequence[Any],
    quantize: Callable[[Any, float, int], Any],
    run: Callable[[FrozenStep, Sequence[Any]], Any],
) -> list[Any]:
    """Evaluates a plan with quantization marked on every value.

    Args:
        plan: the plan.
        inputs: one float array or tensor per plan input.
        quantize: `quantize(value, scale, zero_point)` marks a value as quantized.
        run: `run(step, values)` computes a step on its inputs.

    Returns:
        The values of `plan.outputs`.
    """
    values = {}
    for (name, _, scale, point), value in zip(plan.inputs, inputs, strict=True):
        values[name] = quantize(value, scale, point)
    for step in plan.steps:
        if step.kind == "requantize":  # converters drop a second grid, or put their own QUANTIZE
            values[step.name] = values[step.inputs[0]]
            continue
        result = run(step, [values[name] for name in step.inputs])
        values[step.name] = quantize(result, step.scale, step.zero_point)
    return [values[name] for name in plan.outputs]


def compute(
    step: FrozenStep, values: Sequence[jax.Array], constants: Sequence[jax.typing.ArrayLike]
) -> jax.Array:
    """Computes a step on real values, in a form that both converters take.

    Args:
        step: the step.
        values: its inputs.
        constants: its dequantized constants.

    Returns:
        The output, of a function that the converters do not know the output of another one. A
        dense step of rank above 2 is computed on rows, or on one pixel as a convolution: of unit
        dimensions the converters would make a BATCH_MATMUL of the wrong rank.
    """
    if step.kind in _STAND_INS:
        return _STAND_INS[step.kind](values[0])
    if step.kind != "dense" or values[0].ndim <= 2:
        return step.apply(*values, *constants)
    if is_pixel(values[0].shape):
        operands = [jnp.asarray(operand) for operand in (*values, *constants)]
        specs = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
        return pixels_convolved(step.apply, specs)(*operands)
    rows = values[0].reshape(-1, values[0].shape[-1])
    return step.apply(rows, *constants).reshape(step.out_shape)


def folds(plan: Frozen, step: FrozenStep) -> bool:
    """Says whether a converter may leave a step out of the file.

    Args:
        plan: the plan of the step.
        step: a step of it.

    Returns:
        True for constants, for pads and changes of shape, which can become part of another
        operation, for a clamp on its input's own grid, which its producer can do, and for a
        requantization.
    """
    if step.kind in ("relu", "relu6"):
        return plan.quantization()[step.inputs[0]] == (step.scale, step.zero_point)
    return step.kind in ("constant", "pad", "reshape", "transpose", "requantize")


def names_by_scale(plan: Frozen) -> Mapping[float, frozenset[str]]:
    """Groups the values of a labelled plan by their label.

    Args:
        plan: a plan made by `label`.

    Returns:
        `{scale: names}`.
    """
    groups: dict[float, set[str]] = {}
    for name, (scale, _) in plan.quantization().items():
        groups.setdefault(scale, set()).add(name)
    return {scale: frozenset(names) for scale, names in groups.items()}


def _narrowed(plan: Frozen) -> Frozen:
    """A plan of int16 activations as one of int8: converters know no labels of 16 bits."""
    grids = {name: (scale, point) for name, _, scale, point in plan.inputs}
    steps = []
    for step in plan.steps:
        grid = (step.scale, step.zero_point)
        if step.kind in FIXED_SCALE:
            _expect(step, _WIDE_FIXED, f"that LiteRT fixes for {step.kind} in int16")
            grid = FIXED_SCALE[step.kind]
        elif step.kind in SAME_SCALE or (folds(plan, step) and step.kind not in _OWN_SCALE):
            before = plan.quantization()[step.inputs[0]]
            _expect(step, before, f"of its input {step.inputs[0]!r}")
            grid = grids[step.inputs[0]]
        grids[step.name] = grid
        steps.append(dataclasses.replace(step, scale=grid[0], zero_point=grid[1]))
    return Frozen(plan.inputs, tuple(steps), plan.outputs)


def _labels(plan: Frozen) -> dict[str, float]:
    """Labels by name: one for each set of values that are bound to share a scale."""
    grids = plan.quantization()
    parent = {name: name for name in grids}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    fixed: dict[str, float] = {}
    for step in plan.steps:
        if step.kind == "requantize":
            # From a fixed scale the converter makes a QUANTIZE; another one it moves instead.
            source = find(step.inputs[0])
            if source not in map(find, fixed):
                parent[source] = find(step.name)
        elif step.kind in SAME_SCALE or folds(plan, step):
            for source in step.inputs:
                _expect(step, grids[source], f"of its input {source!r}")
                parent[find(source)] = find(step.name)
        elif step.kind in FIXED_SCALE:
            _expect(step, FIXED_SCALE[step.kind], f"that LiteRT fixes for {step.kind}")
            fixed[step.name] = step.scale
    known = {find(name): scale for name, scale in fixed.items()}
    labels: dict[str, float] = {}
    for name in grids:
        root = find(name)
        if root not in known:
            known[root] = 1 + (len(known) + 1) / _MARK
        labels[name] = known[root]
    return labels


def _expect(step: FrozenStep, grid: tuple[float, int], whose: str) -> None:
    if not math.isclose(step.scale, grid[0], rel_tol=1e-7) or step.zero_point != grid[1]:
        raise ValueError(
            f"step {step.name!r} ({step.kind}) has scale {step.scale} and zero point "
            f"{step.zero_point}; expected {grid[0]} and {grid[1]}, those {whose}"
        )


def _tensor(
    codes: Codes, scale: float, rng: np.random.Generator, seen: dict[float, list[np.ndarray]]
) -> Codes:
    """Pseudo-random codes that no other constant of their label comes near, in any layout."""
    others = [flat for flat in seen.setdefault(scale, []) if flat.size == codes.codes.size]
    for _ in range(_TRIES):
        pattern = rng.integers(-128, 128, codes.codes.shape, np.int8)
        flat = np.sort(pattern, axis=None).astype(np.int16)
        if all(np.abs(flat - other).max() > 2 for other in others):
            break
    else:
        raise ValueError(
            f"{len(others)} constants of {codes.codes.size} values share one scale, too many to be "
            "told apart in a converted file: join them to one array before"
        )
    seen[scale].append(flat)
    return Codes(pattern, np.asarray(scale, np.float32), None, codes.zero_point)


def _constant(codes: Codes, input_scale: float, rng: np.random.Generator, *, weight: bool) -> Codes:
    """Pseudo-random codes that reach the ends of their grid, so that no converter rescales them."""
    shape = codes.codes.shape
    if codes.codes.dtype in (np.int32, np.int64):
        product = np.asarray(np.float32(input_scale) * _WEIGHT_SCALE)
        return Codes(rng.integers(1, 1000, shape, np.int32), product, None)
    pattern = rng.integers(-120, 121, shape, np.int8)
    if weight and len(shape) == 2:  # each row and each column, whichever holds the channels
        i = np.arange(max(shape))
        pattern[i % shape[0], i % shape[1]] = 127
    elif weight:
        axis = -1 if codes.axis is None else codes.axis
        np.moveaxis(pattern, axis, -1)[(0,) * (len(shape) - 1)] = 127
    else:  # both ends; of one value the end that is not zero, which converters would remove
        pattern.flat[-1], pattern.flat[0] = -128, 127
        if pattern.size == 1 and codes.zero_point > 0:
            pattern[...] = -128
    scale = np.full(np.shape(codes.scale), _WEIGHT_SCALE)
    return Codes(pattern, scale, codes.axis, codes.zero_point)
