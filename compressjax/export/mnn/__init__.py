"""MNN models, float and int8, made from .tflite files, and MNN's runtime; needs the extra `mnn`."""

from compressjax.export.mnn.convert import convert
from compressjax.export.mnn.runtime import Session, run
from compressjax.export.mnn.verify import verify

__all__ = ["Session", "convert", "run", "verify"]
