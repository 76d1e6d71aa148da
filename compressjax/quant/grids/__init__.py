"""Number formats for weights: which values a weight may take, and how it is put on one of them.

Every format is a `Grid`, four pure functions; which weights share a scale is a `Granularity`. The
formats that are integers times a scale (`integer`, `learned_step`, `ternary`, `binary`,
`power_of_two`, `additive_power_of_two`) also have int8 codes, which LiteRT can store; the others
(`trained_ternary`, `logarithmic`, `codebook`, `bfloat16`, `float16`) are simulated.
"""

from compressjax.quant.grids.casts import bfloat16, float16
from compressjax.quant.grids.codebook import codebook
from compressjax.quant.grids.granularity import Granularity, per_block, per_channel, per_tensor
from compressjax.quant.grids.grid import Grid, Params, keep_zeros, stochastic
from compressjax.quant.grids.integer import integer, learned_step
from compressjax.quant.grids.levels import additive_power_of_two, power_of_two
from compressjax.quant.grids.logarithmic import logarithmic
from compressjax.quant.grids.ternary import binary, ternary, trained_ternary
from compressjax.quant.grids.trees import Rules, fake_quant, fit_at, fit_grids

__all__ = [
    "Granularity",
    "Grid",
    "Params",
    "Rules",
    "additive_power_of_two",
    "bfloat16",
    "binary",
    "codebook",
    "fake_quant",
    "fit_at",
    "fit_grids",
    "float16",
    "integer",
    "keep_zeros",
    "learned_step",
    "logarithmic",
    "per_block",
    "per_channel",
    "per_tensor",
    "power_of_two",
    "stochastic",
    "ternary",
    "trained_ternary",
]
