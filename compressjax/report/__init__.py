"""What a run reached: a table, JSON, a picture and one HTML page."""

from compressjax.report.coding import CodedSize, coded_size, entropy_bits, tree_size
from compressjax.report.table import Provenance, StageRow, VerifyRow, provenance, to_json

__all__ = [
    "CodedSize",
    "Provenance",
    "StageRow",
    "VerifyRow",
    "coded_size",
    "entropy_bits",
    "provenance",
    "to_json",
    "tree_size",
]
