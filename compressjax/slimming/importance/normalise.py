"""Making the scores of different groups comparable, for `slimming.global_`.

A norm over a large filter is large whatever the layer does; divided by what is usual in its group,
it says how a channel stands among its own. Scales of batch norm need none of this.
"""

import numpy as np


def mean_normalised(scores: np.ndarray) -> np.ndarray:
    """Divides scores by their mean.

    Args:
      scores: `[C]`, not negative.

    Returns:
      `[C]`, of mean 1; as they are if all are 0.

    Example:
      >>> mean_normalised(np.array([1.0, 3.0])).tolist()
      [0.5, 1.5]
    """
    return scores / (np.mean(np.abs(scores)) or 1.0)


def max_normalised(scores: np.ndarray) -> np.ndarray:
    """Divides scores by the largest.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference"
    (2017), equation 9, rescale by the Euclidean norm; dividing by the largest keeps one channel of
    every group at 1.

    Args:
      scores: `[C]`, not negative.

    Returns:
      `[C]`, of which the largest is 1; as they are if all are 0.

    Example:
      >>> max_normalised(np.array([1.0, 4.0])).tolist()
      [0.25, 1.0]
    """
    return scores / (np.max(np.abs(scores), initial=0.0) or 1.0)


def norm_normalised(scores: np.ndarray) -> np.ndarray:
    """Divides scores by their Euclidean norm.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference"
    (2017), equation 9.

    Args:
      scores: `[C]`.

    Returns:
      `[C]`, of norm 1; as they are if all are 0.

    Example:
      >>> norm_normalised(np.array([3.0, 4.0])).tolist()
      [0.6, 0.8]
    """
    return scores / (np.linalg.norm(scores) or 1.0)
