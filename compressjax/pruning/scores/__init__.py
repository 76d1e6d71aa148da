"""Pruning criteria: how much each weight matters.

One file per family, by what they look at: the weights alone (`magnitude`, `lamp`), chance
(`random`), first-order evidence (`gradients`), the flow of signals (`flow`), the diagonal of the
curvature (`fisher`) and blocks of it (`inverse_fisher`). `base` says what a `Score` is.
"""

from compressjax.pruning.scores.base import Score
from compressjax.pruning.scores.fisher import diagonal_fisher, optimal_brain_damage
from compressjax.pruning.scores.flow import grasp, synflow
from compressjax.pruning.scores.gradients import movement, saliency, snip
from compressjax.pruning.scores.inverse_fisher import compensate, optimal_brain_surgeon
from compressjax.pruning.scores.magnitude import lamp, magnitude, squared_magnitude
from compressjax.pruning.scores.random import draws, random

__all__ = [
    "Score",
    "compensate",
    "diagonal_fisher",
    "draws",
    "grasp",
    "lamp",
    "magnitude",
    "movement",
    "optimal_brain_damage",
    "optimal_brain_surgeon",
    "random",
    "saliency",
    "snip",
    "squared_magnitude",
    "synflow",
]
