"""The commands on files: what they print, what they write, and how they end."""

import doctest
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import data
from launch import benchmark, verify
from tests.support import tflite_ops as ops


def _fn(variables, x):
    y = jax.lax.conv_general_dilated(
        x, variables["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2)) @ variables["dense"]["kernel"]


@functools.cache
def _files() -> dict[str, bytes]:
    draw = np.random.default_rng(2).normal
    variables = {
        "conv": {"kernel": jnp.asarray(draw(size=(3, 3, 1, 8)), jnp.float32)},
        "dense": {"kernel": jnp.asarray(draw(size=(8, 10)), jnp.float32)},
    }
    x = np.float32(draw(size=(16, 8, 8, 1)))
    q = cj.quantize(_fn, cj.quant.int8())
    qv = q.calibrate(variables, [x])
    dynamic = cj.quantize(_fn, cj.quant.dynamic())
    dv = dynamic.calibrate(variables, [x])
    return {
        "dynamic.tflite": cj.export.tflite(dynamic, dv, x[:1], via="litert"),
        "int8.tflite": cj.export.tflite(q, qv, x[:1], via="litert"),
        "float.tflite": cj.export.tflite(_fn, variables, x[:1], via="litert"),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in _files().items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "x.npy", np.random.default_rng(3).normal(size=(40, 8, 8, 1)).astype("f"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _verify(*arguments: str) -> int:
    return verify.main(["verify", *arguments])


def test_the_file_is_what_it_says(folder, capsys):
    assert _verify("--model=int8.tflite", "--data=x.npy", "--float=float.tflite") == 0
    said = capsys.readouterr().out
    assert "0 values differ (nowhere), top-1 agreement 100.00% of 40 rows" in said
    assert "on the reference kernels:" in said
    assert "against the float model: top-1 agreement" in said


@pytest.mark.parametrize(("name", "beside"), [("float", "dynamic"), ("dynamic", "float")])
def test_float_files_are_what_they_say(folder, capsys, name, beside):
    arguments = [f"--model={name}.tflite", "--data=x.npy", f"--float={beside}.tflite"]
    assert _verify(*arguments, "--min_sqnr=20") == 0
    said = capsys.readouterr().out
    assert "0 values differ (nowhere), top-1 agreement 100.00% of 40 rows" in said
    assert "on the reference kernels:" in said
    assert _verify(*arguments, "--min_sqnr=90") == 1
    assert "FAILED: the outputs have" in capsys.readouterr().out
    assert _verify(f"--model={name}.tflite", "--data=x.npy", "--tolerance=0") == 1, "other sums"
    assert "of the values differ" in capsys.readouterr().out


def test_reference_kernels_as_the_truth(folder, capsys):
    arguments = ["--model=int8.tflite", "--data=x.npy", "--truth=reference"]
    assert _verify(*arguments) == 1
    said = capsys.readouterr().out
    assert "FAILED: values differ by up to" in said
    assert "at most 0.0000% may: first in conv/kernel" in said
    assert _verify(*arguments, "--max_lsb=3", "--max_mismatch=0.5") == 0
    assert "FAILED" not in capsys.readouterr().out


def test_thresholds_against_the_float_file(folder, capsys):
    arguments = ["--model=int8.tflite", "--data=x.npy", "--float=float.tflite", "--rows=20"]
    arguments.append("--signature=serving_default")
    assert _verify(*arguments, "--min_agreement=0.5", "--min_sqnr=20") == 0
    assert "of 20 rows" in capsys.readouterr().out
    assert _verify(*arguments, "--min_sqnr=90") == 1
    assert "at least 90.0 dB are asked for" in capsys.readouterr().out


def test_what_it_writes(folder):
    arguments = ["--model=int8.tflite", "--data=x.npy", "--float=float.tflite"]
    assert _verify(*arguments, "--plot=out/parity.png", "--json=out/parity.json") == 0
    assert (folder / "out/parity.png").read_bytes()[:4] == b"\x89PNG"
    value = json.loads((folder / "out/parity.json").read_text())
    assert value["failed"] == []
    assert value["parity"]["max_lsb"] == 0
    assert value["parity"]["samples"] == 40
    assert value["circumstances"]["data"] == "x.npy"


def test_samples_of_a_data_set(tmp_path):
    directory = str(tmp_path)
    (images,) = verify.samples("digits", "test", directory, rows=7, normalise=True)
    train = data.load("digits", "train", data_dir=directory).images / 255.0
    raw = data.load("digits", "test", data_dir=directory).images[:7]
    expected = (raw / 255.0 - train.mean()) / train.std()
    np.testing.assert_allclose(images, expected, atol=1e-5)
    (same,) = verify.samples("digits", "test", directory, rows=7, normalise=False)
    np.testing.assert_array_equal(same, raw)
    assert same.dtype == np.float32


def test_samples_of_files(tmp_path):
    arrays = {"input_1": np.zeros((5, 3), "f"), "input_0": np.ones((5, 2), "f")}
    np.savez(tmp_path / "x.npz", **arrays)
    one, two = verify.samples(str(tmp_path / "x.npz"), "", None, rows=4, normalise=True)
    assert (one.shape, two.shape) == ((4, 2), (4, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=x.npy"], "model"),
        (["--model=missing.tflite", "--data=x.npy"], "No such file"),
        (["--model=int8.tflite", "--data=missing.npy"], "No such file"),
        (["--model=x.npy", "--data=x.npy"], "not a .tflite"),
        (["--model=int8.tflite", "--data=wide.npy"], "shape"),
        (["--model=int8.tflite", "--data=whole.npy"], "int64"),
        (["--model=int8.tflite", "--data=objects.npy"], "allow_pickle"),
        (
            ["--model=diagonal.tflite", "--data=x.npy"],
            "MATRIX_DIAG of 'tensor_1', is not known here",
        ),
        (
            ["--model=diagonal.tflite", "--data=x.npy"],
            "(--truth=reference compares kernels without",
        ),
        (["--model=float.tflite", "--data=x.npy", "--tolerance=-1"], "tolerance"),
        (["--model=int8.tflite", "--data=x.npy", "--signature=other"], "no signature 'other'"),
        (["--model=int8.tflite", "--data=digit"], "no data set 'digit'"),
        (["--model=int8.tflite", "--data=x.npy", "--rows=-1"], "rows"),
        (["--model=int8.tflite", "--data=x.npy", "--min_sqnr=20"], "need a float file"),
        (["--model=int8.tflite", "--data=x.npy", "--color=red"], "color"),
        (["--model=int8.tflite", "--data=x.npy", "more"], "unexpected argument 'more'"),
    ],
)
def test_bad_input(folder, capsys, arguments, message):
    np.save("wide.npy", np.zeros((3, 9, 9, 1), "f"))
    np.save("whole.npy", np.zeros((3, 8, 8, 1), np.int64))
    diagonal = [ops.Tensor((1, 2), np.float32), ops.Tensor((1, 2, 2), np.float32)]
    options = ops.options("MatrixDiagOptions")
    pathlib.Path("diagonal.tflite").write_bytes(
        ops.build("MATRIX_DIAG", diagonal[:1], diagonal[1], options)
    )
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    assert _verify(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_exit_codes_of_the_program(folder):
    command = [sys.executable, "-m", "launch.verify", "--model=int8.tflite", "--truth=reference"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, "--data=x.npy"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_help(capsys):
    assert _verify("--help") == 0
    said = capsys.readouterr().out
    assert "Exit code 0: good" in said
    assert "--[no]normalise" in said


def test_benchmark(folder, capsys):
    arguments = ["benchmark", "--model=float.tflite", "--model=int8.tflite", "--rounds=2"]
    assert benchmark.main([*arguments, "--profile", "--json=b.json"]) == 0
    said = capsys.readouterr().out
    assert "1.000 to 1.000" in said
    assert "conv/kernel" in said
    value = json.loads((folder / "b.json").read_text())
    assert list(value["files"]) == ["float.tflite", "int8.tflite"]
    assert value["files"]["int8.tflite"]["not_delegated"] == []
    assert value["files"]["int8.tflite"]["kernels"][0]["delegated"]
    assert benchmark.main([*arguments, "--max_ratio=0"]) == 1
    assert "FAILED: int8.tflite takes" in capsys.readouterr().out
    assert benchmark.main(["benchmark", "--model=missing.tflite"]) == 2
    assert "error: " in capsys.readouterr().err
    assert benchmark.main(["benchmark"]) == 2
    assert doctest.testmod(benchmark).failed == 0
