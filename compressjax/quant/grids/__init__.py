"""Number formats for weights: which values a weight may take, and how it is put on one of them."""

from compressjax.quant.grids.granularity import Granularity, per_block, per_channel, per_tensor
from compressjax.quant.grids.grid import Grid, Params
from compressjax.quant.grids.integer import integer

__all__ = [
    "Granularity",
    "Grid",
    "Params",
    "integer",
    "per_block",
    "per_channel",
    "per_tensor",
]
