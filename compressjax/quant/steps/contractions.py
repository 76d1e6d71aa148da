"""Convolutions, fully connected layers and products of two activations."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant import lattice
from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.ranges import Range
from compressjax.quant.steps.kind import Call, Coded, Kind, Stored, ends_of

_NHWC = ("NHWC", "HWIO", "NHWC")


def _biased(y: jax.Array, constants: Sequence[jax.Array]) -> jax.Array:
    return y + constants[1].reshape((1,) * (y.ndim - 1) + (-1,)) if len(constants) > 1 else y


def _real_conv(
    step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> jax.Array:
    y = lax.conv_general_dilated(inputs[0], constants[0], dimension_numbers=_NHWC, **step.params)
    return _biased(y, constants)


def _real_dense(
    step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> jax.Array:
    del step
    x = inputs[0]
    return _biased(lax.dot_general(x, constants[0], (((x.ndim - 1,), (0,)), ((), ()))), constants)


def _rescaled(step: Step, acc: jax.Array, grid: Affine, coded: Coded, out: Affine) -> Stored:
    axis = acc.ndim - 1
    codes = lattice.rescale(acc, grid, coded.grid.scale, out, axis, lo=step.lo, hi=step.hi)
    return Stored(codes, _ends(step, acc, grid, coded))


def _ends(step: Step, acc: jax.Array, grid: Affine, coded: Coded) -> Range:
    """The ends of a contraction's real values, from those of each channel's sum."""
    acc, axes = lax.stop_gradient(acc), tuple(range(acc.ndim - 1))
    scale = lax.stop_gradient(grid.scale * coded.grid.scale)
    low, high = (acc.min(axes) * scale).min(), (acc.max(axes) * scale).max()
    clamp = (step.lo, step.hi)
    return jnp.clip(low, *clamp), jnp.clip(high, *clamp)


def _kernel(call: Call) -> Coded:
    assert call.coded is not None
    return call.coded


def _lattice_conv(call: Call) -> Stored:
    kernel, grid = _kernel(call), call.grids[0]
    acc = lattice.conv_sum(
        call.codes[0],
        kernel.codes,
        kernel.bias,
        grid,
        dimension_numbers=_NHWC,
        **call.step.params,
    )
    return _rescaled(call.step, acc, grid, kernel, call.out)


def _lattice_dense(call: Call) -> Stored:
    kernel, grid, x = _kernel(call), call.grids[0], call.codes[0]
    acc = lattice.dot_sum(x, kernel.codes, kernel.bias, grid, dimension_numbers=_last(x))
    return _rescaled(call.step, acc, grid, kernel, call.out)


def _last(x: jax.Array) -> lax.DotDimensionNumbers:
    return (((x.ndim - 1,), (0,)), ((), ()))


def _wide_conv(call: Call) -> Stored:
    x, w = call.codes[0], _kernel(call).codes
    form = lattice.convolution(x, w, dimension_numbers=_NHWC, **call.step.params)
    return _wide(call, form, lattice.wide.rescale)


def _wide_dense(call: Call) -> Stored:
    x = call.codes[0]
    form = lattice.dot(x, _kernel(call).codes, dimension_numbers=_last(x))
    return _wide(call, form, lattice.wide.rescale_dense)


def _wide(call: Call, form: lattice.Bilinear, rescale: Callable[..., jax.Array]) -> Stored:
    step, kernel, grid = call.step, _kernel(call), call.grids[0]
    acc = lattice.total.total(form, call.codes[0], kernel.codes, kernel.bias)
    scale, axis = kernel.grid.scale, acc.high.ndim - 1
    codes = rescale(acc, grid, scale, call.out, axis, lo=step.lo, hi=step.hi)
    return Stored(codes, _ends(step, acc.approx, grid, kernel))


def _real_matmul(
    step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]
) -> jax.Array:
    del step, constants
    return jnp.matmul(*inputs)


def _lattice_matmul(call: Call) -> Stored:
    left, right = call.grids
    sums = lattice.matmul_sum(call.codes[0], call.codes[1], left, right)
    low, high = ends_of(sums.approx)
    scale = lax.stop_gradient(left.scale * right.scale)
    return Stored(lattice.matmul_rescale(sums, left, right, call.out), (low * scale, high * scale))


def _wide_matmul(call: Call) -> Stored:
    left, right = call.grids
    sums = lattice.total.matmul(call.codes[0], call.codes[1])
    low, high = ends_of(sums.approx)
    scale = lax.stop_gradient(left.scale * right.scale)
    codes = lattice.wide.rescale_matmul(sums, left, right, call.out)
    return Stored(codes, (low * scale, high * scale))


CONV = Kind(_real_conv, _lattice_conv, _wide_conv)
DENSE = Kind(_real_dense, _lattice_dense, _wide_dense)
BATCH_MATMUL = Kind(_real_matmul, _lattice_matmul, _wide_matmul)
