"""A program of its own: runs a .tflite with LiteRT's profiler and prints what it says.

LiteRT times every kernel, those of XNNPACK too, but offers that in C only, through an interface
whose functions may change with its version. So it is called here, in a process that nobody minds
losing; `profile.py` starts it and reads what it prints. It imports the standard library only.

    python -I _profiler.py LIBRARY MODEL THREADS WARMUP ROUNDS REPEATS
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

_CPU, _WRITE = 1, 1  # LiteRT's constants for an accelerator and for locking a buffer
SEPARATOR = "\f"  # between two summaries
_DESTROY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run(
    library: str, model: str, threads: int, warmup: int, rounds: int, repeats: int
) -> list[str]:
    """Profiles a model on zeros.

    Args:
        library: path of libLiteRt.
        model: path of the .tflite.
        threads: CPU threads.
        warmup: calls before the profile begins.
        rounds: profiles that are made.
        repeats: calls in each.

    Returns:
        LiteRT's own summary of each round.

    Raises:
        AttributeError: the library has no such function.
        OSError: there is no such library.
        RuntimeError: LiteRT refuses a call.
    """
    call = _caller(ctypes.CDLL(library))
    environment, loaded, options = (ctypes.c_void_p() for _ in range(3))
    call("LiteRtCreateEnvironment", 0, ctypes.create_string_buffer(256), ctypes.byref(environment))
    call("LiteRtCreateModelFromFile", environment, model.encode(), ctypes.byref(loaded))
    call("LiteRtCreateOptions", ctypes.byref(options))
    call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
    texts = {
        b"runtime_options_string": b"enable_profiling = true\n",
        b"xnnpack": b"num_threads = %d\n" % threads,
    }
    kept = [_add_option(call, options, name, text) for name, text in texts.items()]
    compiled, signature, profiler = (ctypes.c_void_p() for _ in range(3))
    call("LiteRtCreateCompiledModel", environment, loaded, options, ctypes.byref(compiled))
    call("LiteRtGetModelSignature", loaded, ctypes.c_size_t(0), ctypes.byref(signature))
    buffers = [
        _buffers(call, kind, environment, signature, compiled) for kind in ("Input", "Output")
    ]
    arguments = [part for group in buffers for part in (ctypes.c_size_t(len(group)), group)]
    call("LiteRtCompiledModelGetProfiler", compiled, ctypes.byref(profiler))
    for _ in range(warmup):
        call("LiteRtRunCompiledModel", compiled, ctypes.c_size_t(0), *arguments)
    summaries = []
    for _ in range(rounds):
        call("LiteRtResetProfiler", profiler)
        call("LiteRtStartProfiler", profiler)
        for _ in range(repeats):
            call("LiteRtRunCompiledModel", compiled, ctypes.c_size_t(0), *arguments)
        call("LiteRtStopProfiler", profiler)
        summary = ctypes.c_char_p()
        call("LiteRtGetProfileSummary", profiler, compiled, ctypes.byref(summary))
        summaries.append((summary.value or b"").decode())
    del kept
    return summaries


def _caller(litert: ctypes.CDLL) -> Callable[..., None]:
    def call(name: str, *arguments: Any) -> None:
        function = getattr(litert, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"{name} gave the status {status}")

    return call


def _add_option(call: Callable[..., None], options: Any, name: bytes, text: bytes) -> Any:
    """Adds a set of options, which LiteRT takes as text; what it may not outlive is returned."""
    payload, destroy, made = (
        ctypes.create_string_buffer(text),
        _DESTROY(_nothing),
        ctypes.c_void_p(),
    )
    call("LiteRtCreateOpaqueOptions", name, payload, destroy, ctypes.byref(made))
    call("LiteRtAddOpaqueOptions", options, made)
    return payload, destroy


def _nothing(_: Any) -> None:
    """Destroys nothing: the payload is Python's."""


def _buffers(
    call: Callable[..., None], kind: str, environment: Any, signature: Any, compiled: Any
) -> Any:
    """Makes the input or output buffers of the first signature, full of zeros."""
    count = ctypes.c_size_t()
    call(f"LiteRtGetNumSignature{kind}s", signature, ctypes.byref(count))
    made = (ctypes.c_void_p * count.value)()
    for i in range(count.value):
        tensor, needs, buffer, address = (ctypes.c_void_p() for _ in range(4))
        kind_of = ctypes.create_string_buffer(1024)  # more than the structure has
        at, size = ctypes.c_size_t(i), ctypes.c_size_t()
        call(f"LiteRtGetSignature{kind}TensorByIndex", signature, at, ctypes.byref(tensor))
        call("LiteRtGetRankedTensorType", tensor, kind_of)
        name = f"LiteRtGetCompiledModel{kind}BufferRequirements"
        call(name, compiled, ctypes.c_size_t(0), at, ctypes.byref(needs))
        name = "LiteRtCreateManagedTensorBufferFromRequirements"
        call(name, environment, kind_of, needs, ctypes.byref(buffer))
        call("LiteRtGetTensorBufferSize", buffer, ctypes.byref(size))
        call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), _WRITE)
        if address.value:
            ctypes.memset(address.value, 0, size.value)
        call("LiteRtUnlockTensorBuffer", buffer)
        made[i] = buffer
    return made


def main(argv: Sequence[str]) -> int:
    """Prints the summaries, or says on the error output why there is none."""
    try:
        print(SEPARATOR.join(run(argv[1], argv[2], *map(int, argv[3:7]))))
    except (OSError, RuntimeError, AttributeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
