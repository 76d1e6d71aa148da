"""A model as a .tflite, and the proof that it is the model that was trained."""

from compressjax.export import mnn, onnx
from compressjax.export.batch import dynamic_batch
from compressjax.export.benchmark import Latency, Turns, benchmark, compare
from compressjax.export.check import Problem, Report, check
from compressjax.export.ends import with_image_input, with_softmax, with_top_k
from compressjax.export.flatbuffer import ops, validate
from compressjax.export.int4 import pack_int4
from compressjax.export.join import chain, merge, select
from compressjax.export.load import Loaded, load
from compressjax.export.memory import arena_bytes
from compressjax.export.metadata import Metadata, metadata, with_metadata
from compressjax.export.parity import Distance, Layer, Parity
from compressjax.export.profile import Kernel, profile
from compressjax.export.runtime import run
from compressjax.export.serving import saved_model, stablehlo
from compressjax.export.sparse import sparsify
from compressjax.export.tflite import tflite
from compressjax.export.verify import verify

__all__ = [
    "Distance",
    "Kernel",
    "Latency",
    "Layer",
    "Loaded",
    "Metadata",
    "Parity",
    "Problem",
    "Report",
    "Turns",
    "arena_bytes",
    "benchmark",
    "chain",
    "check",
    "compare",
    "dynamic_batch",
    "load",
    "merge",
    "metadata",
    "mnn",
    "onnx",
    "ops",
    "pack_int4",
    "profile",
    "run",
    "saved_model",
    "select",
    "sparsify",
    "stablehlo",
    "tflite",
    "validate",
    "verify",
    "with_image_input",
    "with_metadata",
    "with_softmax",
    "with_top_k",
]
