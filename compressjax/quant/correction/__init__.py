"""Post-training corrections: pure transforms of calibrated or float variables, without labels."""

from compressjax.quant.correction.absorb import absorb_bias as absorb_bias
from compressjax.quant.correction.batch_norm import reestimate_batch_norm as reestimate_batch_norm
from compressjax.quant.correction.equalize import equalize as equalize
from compressjax.quant.correction.pairs import layer_pairs as layer_pairs
