"""Says whether a .tflite computes what it should, layer by layer, on real samples.

    python -m launch.verify --model=model_int8.tflite --data=digits --float=model_float32.tflite

Everything comes from files, nothing from training. The truth is the network rebuilt from the file
itself (`cj.export.load`), bit for bit on int8 and within --tolerance on real values;
--truth=reference takes LiteRT's reference kernels instead. Samples are those of a data set
(--data=digits, or any TFDS name, with --data_dir), normalised by the moments of its training split
as `experiments.run` does, or arrays just as the model takes them (--data=samples.npy, or an .npz
with one array per input).

Exit code 0: good; 1: a threshold is passed; 2: the input is wrong.
"""

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from compressjax import _atomic, data, export, report
from launch import cli

_FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string("model", None, "The .tflite.", flag_values=_FLAGS)
_SIGNATURE = flags.DEFINE_string(
    "signature", None, "Which one of the file; its first by default.", flag_values=_FLAGS
)
_DATA = flags.DEFINE_string(
    "data", None, "Samples: a data set, or a file .npy or .npz.", flag_values=_FLAGS
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps it.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_string("split", "test", "The data set's split.", flag_values=_FLAGS)
_NORMALISE = flags.DEFINE_bool(
    "normalise", True, "Normalise a data set's images; not for models that do it themselves.",
    flag_values=_FLAGS,
)  # fmt: skip
_ROWS = flags.DEFINE_integer(
    "rows", 500, "How many samples, from the first; 0 for all.", lower_bound=0, flag_values=_FLAGS
)
_TRUTH = flags.DEFINE_enum(
    "truth", "lattice", ["lattice", "reference"],
    "What the default kernels are compared with: the network rebuilt from the file, or LiteRT's "
    "reference kernels.",
    flag_values=_FLAGS,
)  # fmt: skip
_TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "The part of a tensor's largest magnitude by which real values may differ "
    "and count as equal. By default none where all is computed on codes, 1e-5 where sums of floats "
    "depend on their order, 0.02 in dynamic-range files.",
    lower_bound=0.0, flag_values=_FLAGS,
)  # fmt: skip
_REFERENCE_ROWS = flags.DEFINE_integer(
    "reference_rows", 16, "How many samples the reference kernels compute too; they are slow.",
    lower_bound=0, flag_values=_FLAGS,
)  # fmt: skip
_FLOAT = flags.DEFINE_string("float", None, "A float .tflite of the network.", flag_values=_FLAGS)
_MAX_LSB = flags.DEFINE_integer(
    "max_lsb", 0, "Largest difference that is allowed, in steps.", lower_bound=0, flag_values=_FLAGS
)
_MAX_MISMATCH = flags.DEFINE_float(
    "max_mismatch", 0.0, "Part of the values that may differ.", 0.0, 1.0, flag_values=_FLAGS
)
_MAX_REFERENCE = flags.DEFINE_float(
    "max_reference_mismatch", 1.0, "The same on the reference kernels.", 0.0, 1.0,
    flag_values=_FLAGS,
)  # fmt: skip
_MIN_AGREEMENT = flags.DEFINE_float(
    "min_agreement", 0.0, "Least top-1 agreement with --float.", 0.0, 1.0, flag_values=_FLAGS
)
_MIN_SQNR = flags.DEFINE_float(
    "min_sqnr", float("-inf"), "Least dB of the outputs against --float.", flag_values=_FLAGS
)
_PLOT = flags.DEFINE_string("plot", None, "Where a PNG goes.", flag_values=_FLAGS)
_JSON = flags.DEFINE_string("json", None, "Where everything goes as JSON.", flag_values=_FLAGS)
flags.mark_flags_as_required(["model", "data"], _FLAGS)


def samples(
    name: str, split: str, directory: str | None, *, rows: int, normalise: bool
) -> tuple[np.ndarray, ...]:
    """Reads the inputs of a model.

    Args:
        name: a data set, or a file .npy or .npz.
        split: of the data set.
        directory: where TFDS keeps the data set.
        rows: how many, from the first; 0 for all.
        normalise: give a data set's images mean 0 and deviation 1, by its training split.

    Returns:
        One array `[N, ...]` per input.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no such data set or split, or the file holds no arrays.
    """
    suffix, count = pathlib.Path(name).suffix, rows or None
    if suffix == ".npy":
        return (np.load(name, allow_pickle=False)[:count],)
    if suffix == ".npz":
        with np.load(name, allow_pickle=False) as arrays:
            if not arrays.files:
                raise ValueError(f"{name} holds no arrays: expected one for each input")
            return tuple(arrays[key][:count] for key in sorted(arrays.files))
    source = data.open_source(name, split, data_dir=directory)
    images, _ = source.fetch(range(min(len(source), rows or len(source))))
    if not normalise:
        return (images.astype(np.float32),)
    mean, std = data.moments(data.load(name, "train", data_dir=directory).images)
    return (np.asarray(jax.jit(data.normalise)(images, mean, std)),)


def compare() -> export.Parity:
    """Compares the files that the flags name."""
    model = pathlib.Path(_MODEL.value).read_bytes()
    if _SIGNATURE.value is not None:
        model = export.select(model, _SIGNATURE.value)
    inputs = samples(
        _DATA.value, _SPLIT.value, _DATA_DIR.value, rows=_ROWS.value, normalise=_NORMALISE.value
    )
    real = pathlib.Path(_FLOAT.value) if _FLOAT.value else None
    if _TRUTH.value == "reference":
        return export.verify(model, None, None, inputs, real=real, tolerance=_TOLERANCE.value)
    try:
        truth = export.load(model)
    except ValueError as error:
        hint = "--truth=reference compares kernels without rebuilding the network"
        raise ValueError(f"{error} ({hint})") from error
    return export.verify(
        model, truth, truth.variables, inputs,
        reference=_REFERENCE_ROWS.value, real=real, tolerance=_TOLERANCE.value,
    )  # fmt: skip


def work() -> int:
    """Compares, prints, and writes what the flags ask for."""
    if _FLOAT.value is None and (_MIN_AGREEMENT.value > 0 or _MIN_SQNR.value > float("-inf")):
        raise ValueError("--min_agreement and --min_sqnr need a float file: --float=FILE")
    limits: dict[str, Any] = {
        "max_lsb": _MAX_LSB.value,
        "mismatch_fraction": _MAX_MISMATCH.value,
        "reference_mismatch_fraction": _MAX_REFERENCE.value,
        "top1_agreement": _MIN_AGREEMENT.value,
        "sqnr_db": _MIN_SQNR.value,
    }
    parity = compare()
    passed = parity.check(**limits)
    print(parity)
    for sentence in passed:
        print(f"FAILED: {sentence}")
    if _PLOT.value:
        from compressjax.report import plots

        _atomic.write_bytes(_PLOT.value, plots.parity(parity))
    if _JSON.value:
        origin = report.provenance(shlex.join(sys.argv), _DATA.value, 0)
        circumstances = {
            "data": _DATA.value, "hardware": origin.hardware, "system": origin.system,
            "versions": origin.versions,
        }  # fmt: skip
        value = {"model": _MODEL.value, "failed": passed, "parity": parity.to_json()}
        _atomic.write_json(_JSON.value, {**value, "circumstances": circumstances})
    return cli.PASSED if passed else cli.GOOD


def main(argv: Sequence[str]) -> int:
    """Runs the command and gives its exit code."""
    return cli.run(work, _FLAGS, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
