"""What a run reached: a table, JSON, a picture and one HTML page."""

from compressjax.report.table import Provenance, StageRow, VerifyRow, provenance, to_json

__all__ = ["Provenance", "StageRow", "VerifyRow", "provenance", "to_json"]
