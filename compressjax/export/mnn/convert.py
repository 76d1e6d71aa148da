"""From a .tflite to the bytes of an MNN model."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import tempfile

from compressjax.export._require import require
from compressjax.export.mnn.prepare import prepare, widen

# The converter is called as its package's own command calls it, but that command also installs a
# package and reports each conversion to a server of its makers.
_PROGRAM = "import sys, _tools; _tools.mnnconvert(sys.argv[1:])"
_SECONDS = 600


def convert(model: bytes) -> bytes:
    """Converts a .tflite to an MNN model, in a process of its own.

    MNN gives the file its own arithmetic: elementwise additions of an int8 file run on reals, and
    the integer kernels round in another way, so the codes are near those of `q.apply` and not
    equal. `verify` says how near.

    Args:
        model: the .tflite, float or int8 (`tflite(q, qv, x)`), with float inputs and outputs.

    Returns:
        The MNN model.

    Raises:
        ModuleNotFoundError: MNN is not installed.
        TypeError: `model` is not bytes.
        ValueError: the file is damaged, of a format that MNN gets wrong (int8 or int16 inputs,
            only kernels quantized), or the converter refuses it; the message has its words.

    Example:
        >>> import jax.numpy as jnp
        >>> from compressjax.export.mnn.runtime import run
        >>> from compressjax.export.tflite import tflite
        >>> file = tflite(lambda variables, x: x + 1, {}, jnp.ones((1, 2)), via='litert')
        >>> run(convert(file), jnp.ones((3, 2)))
        array([[2., 2.],
               [2., 2.],
               [2., 2.]], dtype=float32)
    """
    prepared = prepare(model)
    if importlib.util.find_spec("_tools") is None:  # importing it here would print notes
        require("MNN", extra="mnn")
    with tempfile.TemporaryDirectory(prefix="compressjax-mnn-") as directory:
        source, target = (pathlib.Path(directory) / name for name in ("in.tflite", "out.mnn"))
        source.write_bytes(prepared)
        command = [sys.executable, "-c", _PROGRAM, "mnnconvert", "-f", "TFLITE"]
        command += ["--modelFile", str(source), "--MNNModel", str(target)]
        command += ["--bizCode", "compressjax"]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode or not target.exists() or not target.stat().st_size:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-4:])
            raise ValueError(f"MNN's converter refuses the file (exit {done.returncode}): {said}")
        return widen(target.read_bytes())
