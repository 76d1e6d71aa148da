"""Masks: pruning composed from a score, a budget, a pattern and a schedule.

Each answers one question in one file: which weights matter (`scores`), how many each leaf keeps
(`budgets`), in which shape (`patterns`) and when (`schedules`). `prune` joins them into one optax
transformation, `choose` into masks at once. Whether pruned weights return is the question of
`regrow`, `latent` and `rewind`. Nothing here changes a shape; `compressjax.slimming` does.
"""

from compressjax.pruning.budgets import (
    Budget,
    Share,
    by_path,
    erdos_renyi,
    erk,
    global_,
    num_kept,
    uniform,
)
from compressjax.pruning.choose import choose
from compressjax.pruning.latent import Latent, straight_through, top_kast
from compressjax.pruning.masks import PruneState, apply_masks, masks
from compressjax.pruning.patterns import Pattern, block, channels, n_m, unstructured
from compressjax.pruning.prune import prune
from compressjax.pruning.regrow import Regrow, rigl, set_
from compressjax.pruning.rewind import RewindState, rewind
from compressjax.pruning.schedules import (
    Schedule,
    constant,
    cosine,
    cyclic,
    exponential,
    iterative,
    one_shot,
    polynomial,
)
from compressjax.pruning.scores import (
    Score,
    compensate,
    diagonal_fisher,
    grasp,
    lamp,
    magnitude,
    movement,
    optimal_brain_damage,
    optimal_brain_surgeon,
    random,
    saliency,
    snip,
    squared_magnitude,
    synflow,
)
from compressjax.pruning.sensitivity import Sensitivity, sensitivity

__all__ = [
    "Budget",
    "Latent",
    "Pattern",
    "PruneState",
    "Regrow",
    "RewindState",
    "Schedule",
    "Score",
    "Sensitivity",
    "Share",
    "apply_masks",
    "block",
    "by_path",
    "channels",
    "choose",
    "compensate",
    "constant",
    "cosine",
    "cyclic",
    "diagonal_fisher",
    "erdos_renyi",
    "erk",
    "exponential",
    "global_",
    "grasp",
    "iterative",
    "lamp",
    "magnitude",
    "masks",
    "movement",
    "n_m",
    "num_kept",
    "one_shot",
    "optimal_brain_damage",
    "optimal_brain_surgeon",
    "polynomial",
    "prune",
    "random",
    "rewind",
    "rigl",
    "saliency",
    "sensitivity",
    "set_",
    "snip",
    "squared_magnitude",
    "straight_through",
    "synflow",
    "top_kast",
    "uniform",
    "unstructured",
]
