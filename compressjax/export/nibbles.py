"""Two 4-bit codes in a byte, as LiteRT's INT4 tensors have them: the even places in the low half.

`flatbuffer.py` unpacks constants with it; `int4.py` decides which weights are stored so.
"""

from __future__ import annotations

import numpy as np


def pack(codes: np.ndarray) -> np.ndarray:
    """Packs codes of 4 bits.

    Args:
        codes: int8 in [-8, 7], any shape.

    Returns:
        uint8 `[ceil(N / 2)]` in the order of `codes.ravel()`; a last half byte without a code is 0.

    Raises:
        ValueError: a code needs more than 4 bits.

    Example:
        >>> pack(np.array([1, -1, 7], np.int8)).tolist()
        [241, 7]
    """
    if codes.size and not (-8 <= codes.min() and codes.max() <= 7):
        raise ValueError(
            f"the codes lie in [{codes.min()}, {codes.max()}], expected [-8, 7]: use a grid of at "
            "most 4 bits"
        )
    flat = codes.ravel().astype(np.int8).view(np.uint8) & 15
    flat = np.pad(flat, (0, flat.size % 2))
    return flat[::2] | flat[1::2] << 4


def unpack(data: np.ndarray, count: int) -> np.ndarray:
    """Unpacks codes of 4 bits.

    Args:
        data: uint8 `[ceil(count / 2)]`.
        count: how many codes there are.

    Returns:
        int8 `[count]` in [-8, 7].

    Example:
        >>> unpack(np.array([241, 7], np.uint8), 3).tolist()
        [1, -1, 7]
    """
    halves = np.stack([data << 4, data & 0xF0], axis=-1).ravel()
    return halves.view(np.int8)[:count] >> 4
