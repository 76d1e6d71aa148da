"""What the operators of a .tflite compute: one rule for each, by the kind of its numbers.

`call.py` says what a rule is given; `moves.py` has the operators that compute nothing, `codes.py`
those of int8, `reals.py` those of float32 and of integers, `hybrid.py` those that multiply real
values by codes; `contractions.py` is what the last three share.
"""

from compressjax.export.meaning import codes, hybrid, moves, reals
from compressjax.export.meaning.call import Call, Rule
from compressjax.export.meaning.codes import FIXED

# Operators that want one grid for all their tensors.
ONE_GRID = frozenset((*moves.RULES, *codes.ONE_GRID)) - {"EMBEDDING_LOOKUP"}
# Operators between codes and real values, whatever they take.
CROSSINGS = {"QUANTIZE": codes.quantize, "DEQUANTIZE": hybrid.dequantize}
KNOWN = frozenset((*moves.RULES, *codes.RULES, *reals.RULES, *hybrid.RULES, *CROSSINGS, "SHAPE"))

SUMMED = 1e-5  # of the largest value: float32 added in another order
_ANOTHER_CODE = 0.02  # a few codes of 255

__all__ = ["CROSSINGS", "Call", "FIXED", "KNOWN", "ONE_GRID", "Rule", "SUMMED", "find", "tolerance"]


def find(kind: str, *, coded: bool, kernel_coded: bool) -> Rule | None:
    """Finds the rule of an operator.

    Args:
        kind: LiteRT's name of it.
        coded: whether it computes on codes.
        kernel_coded: whether its operand 1 has codes.

    Returns:
        The rule; `None` where LiteRT has no such kernel, or it is not known here.

    Example:
        >>> find("ADD", coded=False, kernel_coded=False) is reals.RULES["ADD"]
        True
        >>> find("FLOOR", coded=True, kernel_coded=False)
    """
    for table in (CROSSINGS, moves.RULES):
        if kind in table:
            return table[kind]
    if coded:
        return codes.RULES.get(kind)
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
    if rule in (*CROSSINGS.values(), *moves.RULES.values(), *codes.RULES.values()):
        return 0.0
    return _ANOTHER_CODE if rule in hybrid.RULES.values() else SUMMED
