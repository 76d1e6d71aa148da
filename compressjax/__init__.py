"""compressjax: functional model compression for JAX.

A model is a pure function of its variables, `apply(variables, *inputs) -> outputs`. Every technique
here transforms that pair and gives back another pure function, so techniques compose in any order.
"""

from compressjax import distill, export, pruning, quant, slimming
from compressjax.fold import fold_batch_norm
from compressjax.graph import trace
from compressjax.nnx import from_nnx
from compressjax.pruning import apply_masks, masks, prune
from compressjax.quant import quantize
from compressjax.search import compress_until
from compressjax.slimming import shrink

__all__ = [
    "apply_masks",
    "compress_until",
    "distill",
    "export",
    "fold_batch_norm",
    "from_nnx",
    "masks",
    "prune",
    "pruning",
    "quant",
    "quantize",
    "shrink",
    "slimming",
    "trace",
]
