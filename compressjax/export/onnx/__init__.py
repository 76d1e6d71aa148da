"""ONNX models, float and int8, and ONNX Runtime; needs the extra `onnx`."""

from compressjax.export.onnx.convert import convert
from compressjax.export.onnx.runtime import Session, intermediates, ops, read, run
from compressjax.export.onnx.verify import verify

__all__ = ["Session", "convert", "intermediates", "ops", "read", "run", "verify"]
