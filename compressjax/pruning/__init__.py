"""Masks: pruning composed from a score, a budget, a pattern and a schedule.

Each answers one question in one file: which weights matter (`scores`), how many each leaf keeps
(`budgets`), in which shape (`patterns`) and when (`schedules`). `prune` joins them into one optax
transformation. Nothing here changes a shape; `compressjax.slimming` does.
"""

from compressjax.pruning.budgets import Budget, Share, erdos_renyi, erk, global_, num_kept, uniform
from compressjax.pruning.patterns import Pattern, n_m, unstructured
from compressjax.pruning.prune import PruneState, apply_masks, masks, prune
from compressjax.pruning.schedules import Schedule, constant, one_shot, polynomial
from compressjax.pruning.scores import Score, magnitude

__all__ = [
    "Budget",
    "Pattern",
    "PruneState",
    "Schedule",
    "Score",
    "Share",
    "apply_masks",
    "constant",
    "erdos_renyi",
    "erk",
    "global_",
    "magnitude",
    "masks",
    "n_m",
    "num_kept",
    "one_shot",
    "polynomial",
    "prune",
    "uniform",
    "unstructured",
]
