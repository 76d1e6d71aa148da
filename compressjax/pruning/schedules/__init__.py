"""Pruning schedules: when masks are computed anew, and how sparse they are then.

Steps are counted as updates made: step 1 is the first update, and "at step t" means "in force once
t updates have been applied". The step is a traced integer and the sparsity a traced scalar, so a
growing sparsity never recompiles a training step.
"""

from compressjax.pruning.schedules.phases import constant, cyclic, one_shot
from compressjax.pruning.schedules.ramps import cosine, exponential, iterative, polynomial
from compressjax.pruning.schedules.schedule import Schedule, check_count, check_sparsity

__all__ = [
    "Schedule",
    "check_count",
    "check_sparsity",
    "constant",
    "cosine",
    "cyclic",
    "exponential",
    "iterative",
    "one_shot",
    "polynomial",
]
