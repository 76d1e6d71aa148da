"""What the operators of a .tflite compute: one rule for each, by the kind of its numbers.

`call.py` says what a rule is given; `moves.py` has the operators that compute nothing, `codes.py`
those of int8, `wide.py` those of int16, `reals.py` those of float32 and of integers, `hybrid.py`
those that multiply real values by codes; `contractions.py` is what all but the first share.
"""

from collections.abc import Mapping

from compressjax.export.meaning import codes, hybrid, moves, reals, wide
from compressjax.export.meaning.call import Call, Rule

# Operators that want one grid for all their tensors.
ONE_GRID = frozenset((*moves.RULES, *codes.ONE_GRID)) - {"EMBEDDING_LOOKUP"}
# By the bits of codes: operators whose output has a grid that LiteRT's specification fixes.
FIXED: Mapping[int, Mapping[str, tuple[Rule, tuple[float, int]]]] = {8: codes.FIXED, 16: wide.FIXED}
_CODED: Mapping[int, Mapping[str, Rule]] = {8: codes.RULES, 16: wide.RULES}
_ALWAYS = {**moves.RULES, "DEQUANTIZE": hybrid.dequantize}
_EXACT = (*_ALWAYS.values(), *codes.RULES.values(), *wide.RULES.values())
KNOWN = frozenset((*_ALWAYS, *codes.RULES, *reals.RULES, *hybrid.RULES, *wide.RULES, "SHAPE"))
SUMMED = 1e-5  # of the largest value: float32 added in another order
_ANOTHER_CODE = 0.02  # a few codes of 255

__all__ = ["Call", "FIXED", "KNOWN", "ONE_GRID", "Rule", "SUMMED", "find", "tolerance"]


def find(kind: str, *, bits: int, kernel_coded: bool) -> Rule | None:
    """Finds the rule of an operator.

    Args:
        kind: LiteRT's name of it.
        bits: of the codes that it computes on, 8 or 16; 0 if it computes on other values.
        kernel_coded: whether its operand 1 has codes.

    Returns:
        The rule; `None` where LiteRT has no such kernel, or it is not known here.

    Example:
        >>> find("ADD", bits=0, kernel_coded=False) is reals.RULES["ADD"]
        True
        >>> find("FLOOR", bits=8, kernel_coded=False)
    """
    if kind in _ALWAYS:
        return _ALWAYS[kind]
    if bits:
        return _CODED[bits].get(kind)
    return (hybrid.RULES if kernel_coded else reals.RULES).get(kind)


def tolerance(rule: Rule) -> float:
    """How far the values of a rule may lie from LiteRT's.

    Args:
        rule: of an operator.

    Returns:
        The distance as a part of the largest magnitude; 0 means bit for bit.

    Example:
        >>> tolerance(codes.RULES["ADD"]), tolerance(reals.RULES["ADD"])
        (0.0, 1e-05)
    """
    if rule in _EXACT:
        return 0.0
    return _ANOTHER_CODE if rule in hybrid.RULES.values() else SUMMED
