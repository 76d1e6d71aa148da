"""Observers: how a range is estimated from the values that a tensor takes.

An observer is a few pure functions on a small state, so that calibration over any number of batches
is one jitted update in constant memory. What it finds, a range, becomes a grid in `steps`.
"""

from compressjax.quant.observers.divergence import entropy as entropy
from compressjax.quant.observers.extremes import min_max as min_max
from compressjax.quant.observers.extremes import moving_average as moving_average
from compressjax.quant.observers.observer import Observer as Observer
from compressjax.quant.observers.observer import Range as Range
from compressjax.quant.observers.observer import State as State
from compressjax.quant.observers.observer import per_channel as per_channel
from compressjax.quant.observers.percentiles import percentile as percentile
from compressjax.quant.observers.squared_error import mse as mse
