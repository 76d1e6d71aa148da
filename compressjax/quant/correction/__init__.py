"""Post-training corrections: pure transforms of calibrated or float variables, without labels."""

from compressjax.quant.correction.absorb import absorb_bias as absorb_bias
from compressjax.quant.correction.adaround import adaround as adaround
from compressjax.quant.correction.batch_norm import reestimate_batch_norm as reestimate_batch_norm
from compressjax.quant.correction.bias import correct_bias as correct_bias
from compressjax.quant.correction.bias import correct_bias_without_data as correct_bias_without_data
from compressjax.quant.correction.equalize import equalize as equalize
from compressjax.quant.correction.moments import Moments as Moments
from compressjax.quant.correction.moments import norm_moments as norm_moments
from compressjax.quant.correction.pairs import layer_pairs as layer_pairs
