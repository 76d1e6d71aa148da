"""compressjax: functional model compression for JAX.

A model is a pure function of its variables, `apply(variables, *inputs) -> outputs`. Every technique
here transforms that pair and gives back another pure function, so techniques compose in any order.
"""

from compressjax import distill, export, lowrank, pruning, quant, slimming
from compressjax.fold import fold_batch_norm
from compressjax.graph import capture, trace
from compressjax.lowrank import factorize
from compressjax.nnx import from_nnx
from compressjax.pruning import apply_masks, masks, prune
from compressjax.quant import quantize
from compressjax.search import compress_until
from compressjax.slimming import shrink

__all__ = [
    "apply_masks",
    "capture",
    "compress_until",
    "distill",
    "export",
    "factorize",
    "fold_batch_norm",
    "from_nnx",
    "lowrank",
    "masks",
    "prune",
    "pruning",
    "quant",
    "quantize",
    "shrink",
    "slimming",
    "trace",
]
