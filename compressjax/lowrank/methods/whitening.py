"""Weights as they act on the inputs that a layer really sees.

Errors of a kernel count by what its inputs do: with the root of their second moments multiplied
in, a plain least-squares decomposition minimises the error of outputs, as far as taps of a window
are unrelated. For matrix products that is exact.
"""

import numpy as np

from compressjax.lowrank.layers import Layer
from compressjax.lowrank.methods.base import Moments

_FLOOR = 1e-6  # of the largest: what inputs never do is not magnified on the way back


def whitened(
    layer: Layer, weights: np.ndarray, moments: Moments | None
) -> tuple[np.ndarray, np.ndarray]:
    """Multiplies the root of the inputs' second moments into weights.

    Args:
      layer: the layer.
      weights: `[groups, *window, inputs, outputs]`.
      moments: of the layer; None leaves weights as they are.

    Returns:
      `[groups, taps, inputs, outputs]`, and `[groups, inputs, inputs]`, which brings factors over
      these inputs back to the real ones: `back @ whitened` equals the weights.

    Example:
      >>> layer = Layer('w', (), 2, 1, 1, (((1,), (1,)),))
      >>> seen = Moments(np.diag([4.0, 9.0])[None], np.ones((1, 1, 1)))
      >>> white, back = whitened(layer, np.ones((1, 2, 1)), seen)
      >>> white.ravel().round(6).tolist(), np.diag(back[0]).round(3).tolist()
      ([2.0, 3.0], [0.5, 0.333])
    """
    tensor = weights.reshape(layer.groups, layer.taps, layer.inputs, layer.outputs)
    if moments is None:
        return tensor, np.broadcast_to(np.eye(layer.inputs), (layer.groups, *(layer.inputs,) * 2))
    values, vectors = np.linalg.eigh(moments.inputs)
    floor = _FLOOR * np.maximum(values[:, -1:], 1e-300)
    roots = np.sqrt(np.maximum(values, floor))[:, None]
    forth = (vectors * roots) @ vectors.swapaxes(1, 2)
    return forth[:, None] @ tensor, (vectors / roots) @ vectors.swapaxes(1, 2)
