"""What a decomposition has to say: where it applies, what its ranks mean, and the factors.

Decompositions are array maths in NumPy, float64, outside of jit: several of them in one compiled
program can wait for each other forever on a CPU with two threads.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from compressjax.lowrank.factors import Factor
from compressjax.lowrank.layers import Layer

Ranks = tuple[int, ...]


class Moments(NamedTuple):
    """What a layer was seen to do with data: sums of products, over examples and positions.

    Attributes:
      inputs: `[groups, inputs, inputs]`, of the channels that it reads.
      outputs: `[groups, outputs, outputs]`, of those that it puts out.
      patches: `[groups, taps * inputs, taps * inputs]`, of all that one output is computed from,
        taps first; None if they were not taken.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    patches: np.ndarray | None = None


class Method(NamedTuple):
    """A decomposition of one layer.

    Attributes:
      name: for reports.
      refuses: `refuses(layer) -> reason`, empty where the layer can be decomposed.
      limits: `limits(layer) -> ranks`, the largest ones that exist, at least one number.
      plan: `plan(layer, ranks) -> factors`, their shapes.
      spectra: `spectra(layer, weights, moments) -> singular values`, one falling array for each
        rank, of the length of its limit, all groups together; None if the method has none.
      factors: `factors(layer, weights, ranks, moments) -> weights` of each factor, `[groups,
        *window, inputs, outputs]` as in the plan, from weights `[groups, *window, inputs,
        outputs]`, float64. `moments` may be None: then all inputs count the same.
    """

    name: str
    refuses: Callable[[Layer], str]
    limits: Callable[[Layer], Ranks]
    plan: Callable[[Layer, Ranks], tuple[Factor, ...]]
    spectra: Callable[[Layer, np.ndarray, Moments | None], tuple[np.ndarray, ...]] | None
    factors: Callable[[Layer, np.ndarray, Ranks, Moments | None], Sequence[np.ndarray]]
