"""Factors of a product that are equally long, so that neither is hard to train or to quantize."""

import numpy as np


def balance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Finds what one factor is multiplied and the other divided by.

    Args:
      first: lengths of the channels of the factor that is multiplied.
      second: those of the other one, of the same shape.

    Returns:
      Numbers above 0 of that shape: 1 where a length is 0.

    Example:
      >>> balance(np.array([8.0, 0.0]), np.array([2.0, 3.0])).tolist()
      [0.5, 1.0]
    """
    some = (first > 0) & (second > 0)
    return np.sqrt(np.divide(second, first, out=np.ones_like(first), where=some))
