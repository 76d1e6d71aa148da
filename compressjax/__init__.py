"""compressjax: functional model compression for JAX.

A model is a pure function of its variables, `apply(variables, *inputs) -> outputs`. Every technique
here transforms that pair and gives back another pure function, so techniques compose in any order.
"""

from compressjax import distill as distill
from compressjax import export as export
from compressjax import pruning as pruning
from compressjax import quant as quant
from compressjax.fold import fold_batch_norm as fold_batch_norm
from compressjax.graph import trace as trace
from compressjax.nnx import from_nnx as from_nnx
from compressjax.pruning import apply_masks as apply_masks
from compressjax.pruning import masks as masks
from compressjax.pruning import prune as prune
from compressjax.quant import quantize as quantize
