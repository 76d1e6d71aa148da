"""Quantization: from float functions to LiteRT's integers, exactly."""

from compressjax.quant.observers import Observer as Observer
from compressjax.quant.observers import entropy as entropy
from compressjax.quant.observers import min_max as min_max
from compressjax.quant.observers import moving_average as moving_average
from compressjax.quant.observers import mse as mse
from compressjax.quant.observers import per_channel as per_channel
from compressjax.quant.observers import percentile as percentile
from compressjax.quant.plan import Plan as Plan
from compressjax.quant.quantize import Quantized as Quantized
from compressjax.quant.quantize import Spec as Spec
from compressjax.quant.quantize import int8 as int8
from compressjax.quant.quantize import quantize as quantize
