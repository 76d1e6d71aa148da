"""LiteRT's int8 arithmetic as differentiable functions of arrays: the lattice.

A *code* is an int8 value held in a float32 array; `real = scale * (code - zero_point)`. Each
function maps codes to codes exactly as LiteRT's default CPU kernels do (XNNPACK, and the builtin
kernel where XNNPACK declines an operator), so a network run on codes gives the phone's own
values, eagerly, jitted and batched. Gradients are straight-through (Jacob et al. 2018,
1712.05877): rounding is the identity, and a value passes its gradient where it was not clamped.

This package knows arrays only. Which operators of a network get which grid is placement's
business, and running a graph on the lattice is `quantize`'s. `wide` has the same for int16
activations, all of it in builtin kernels.
"""

from compressjax.quant.lattice import total, wide, wide_functions, wide_reductions
from compressjax.quant.lattice.builtin import (
    absolute,
    comparable,
    div,
    prelu,
    squared_difference,
)
from compressjax.quant.lattice.functions import (
    LOGISTIC_GRID,
    SOFTMAX_GRID,
    TANH_GRID,
    hard_swish,
    logistic,
    relu,
    softmax,
    tanh,
)
from compressjax.quant.lattice.grid import (
    Affine,
    bias_codes,
    bounds,
    dequantize,
    quantize,
    ste_round,
    straight_through,
)
from compressjax.quant.lattice.matmul import matmul_rescale, matmul_sum
from compressjax.quant.lattice.pointwise import add, maximum, minimum, mul, requantize, sub
from compressjax.quant.lattice.products import (
    Bilinear,
    conv_sum,
    convolution,
    dot,
    dot_sum,
    rescale,
)
from compressjax.quant.lattice.reductions import avg_pool, max_pool, mean, sum  # noqa: A004
from compressjax.quant.lattice.resize import resize_bilinear
from compressjax.quant.lattice.tables import elu, exp, gelu, leaky_relu, log, rsqrt, sqrt

__all__ = [
    "Affine",
    "Bilinear",
    "LOGISTIC_GRID",
    "SOFTMAX_GRID",
    "TANH_GRID",
    "absolute",
    "add",
    "avg_pool",
    "bias_codes",
    "bounds",
    "comparable",
    "conv_sum",
    "convolution",
    "dequantize",
    "div",
    "dot",
    "dot_sum",
    "elu",
    "exp",
    "gelu",
    "hard_swish",
    "leaky_relu",
    "log",
    "logistic",
    "matmul_rescale",
    "matmul_sum",
    "max_pool",
    "maximum",
    "mean",
    "minimum",
    "mul",
    "prelu",
    "quantize",
    "relu",
    "requantize",
    "rescale",
    "resize_bilinear",
    "rsqrt",
    "softmax",
    "sqrt",
    "squared_difference",
    "ste_round",
    "straight_through",
    "sub",
    "sum",
    "tanh",
    "total",
    "wide",
    "wide_functions",
    "wide_reductions",
]
