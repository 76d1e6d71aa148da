"""A model as a .tflite, and the proof that it is the model that was trained."""

from compressjax.export.flatbuffer import ops, validate
from compressjax.export.tflite import tflite

__all__ = ["ops", "tflite", "validate"]
