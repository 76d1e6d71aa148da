"""The whole program, end to end on real digits, in seconds."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import compressjax as cj
from compressjax import report, training
from experiments import networks, pipeline, reports, run, stages
from tests.experiments import tiny

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "experiments.run", "--config=tests/experiments/tiny.py"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def config(directory):
    config = tiny.get_config()
    config.data.directory = str(directory)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, directory):
    """One run from start to end; tests must leave its stages as they are."""
    workdir = tmp_path_factory.mktemp("whole")
    config = tiny.get_config()
    config.data.directory = str(directory)
    reached = run.run(config, workdir, "the command")
    return workdir, reached


def test_it_leaves_what_it_promises(whole):
    workdir, reached = whole
    names = {path.name for path in workdir.iterdir() if path.is_file()}
    assert names == {
        "model_int8.tflite",
        "model_app.tflite",
        "dense_float.tflite",
        "report.json",
        "report.png",
        "report.html",
    }
    value = json.loads((workdir / "report.json").read_text())
    assert [row["stage"] for row in value["rows"]] == list(stages.FLOAT_FILES) + ["quantize"]
    assert value["provenance"]["command"] == "the command"
    assert value["provenance"]["dataset"].startswith("digits")
    assert value["reached"] == reached
    first, last = value["rows"][0], value["rows"][-1]
    assert first["file_bytes"] == (workdir / "dense_float.tflite").stat().st_size
    assert last["file_bytes"] == (workdir / "model_int8.tflite").stat().st_size
    assert first["parameters"] > last["parameters"]
    assert first["macs"] > last["macs"]
    assert all(row["latency_ms"] > 0 for row in value["rows"])
    assert first["accuracy"] > 0.5


def test_both_exporters_agree_with_jax_on_every_value(whole):
    workdir, _ = whole
    value = json.loads((workdir / "report.json").read_text())
    assert {row["via"] for row in value["verification"]} == {"jax2tf", "litert"}
    for row in value["verification"]:
        assert (row["differing"], row["max_difference"], row["examples"]) == (0, 0, 360)
        assert row["values"] > 360 * 10
        assert row["first_difference"] is None


def test_the_file_for_apps_takes_images_and_knows_the_classes(whole, config):
    workdir, _ = whole
    images = np.asarray(networks.load_data(config.data).test_images)
    file = (workdir / "model_app.tflite").read_bytes()
    probabilities = cj.export.run(file, images)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    figures = json.loads((workdir / "package" / "result.json").read_text())["figures"]
    value = json.loads((workdir / "report.json").read_text())
    assert figures["accuracy"] == pytest.approx(value["rows"][-1]["accuracy"], abs=0.003)
    said = cj.export.metadata(file)
    assert said.name == config.title
    assert said.labels == tuple("0123456789")


def test_pruning_is_exact_and_stays_through_distillation_and_quantization(whole, config):
    workdir, _ = whole
    figures = {
        name: json.loads((workdir / name / "result.json").read_text())["figures"]
        for name in ("train", "prune", "shrink", "distil", "quantize")
    }
    kernels = 9 * 8 + 9 * 8 * 16 + 16 * 10
    zeros = figures["prune"]["parameters"] - figures["prune"]["nonzero"]
    assert abs(zeros - config.prune.sparsity * kernels) <= 3 * 0.5 + 1
    small = figures["shrink"]["parameters"] - figures["shrink"]["nonzero"]
    assert figures["distil"]["parameters"] - figures["distil"]["nonzero"] >= small > 0
    assert figures["quantize"]["parameters"] - figures["quantize"]["nonzero"] >= small


def test_a_second_run_does_nothing_again(whole, config):
    workdir, reached = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/result.json")}
    report = (workdir / "report.json").read_text()
    assert run.run(config, workdir, "the command") == reached
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/result.json")} == before
    assert (workdir / "report.json").read_text() == report


def test_it_can_stop_after_a_stage(whole, directory, tmp_path):
    """And takes a stage that was done before, by its figures, without a report."""
    shutil.copytree(whole[0] / "train", tmp_path / "train")
    command = [*COMMAND, f"--workdir={tmp_path}", f"--config.data.directory={directory}"]
    done = subprocess.run([*command, "--until=train"], cwd=ROOT, capture_output=True, check=True)
    expected = json.loads((whole[0] / "train" / "result.json").read_text())["figures"]
    assert json.loads(done.stdout) == {"train": expected}
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_killed_run_goes_on_to_the_same_bits(whole, config, directory, tmp_path):
    command = [*COMMAND, f"--workdir={tmp_path}", f"--config.data.directory={directory}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "train" / "checkpoints" / "2").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (tmp_path / "train" / "result.json").exists()
    result = pipeline.run_stages(stages.STAGES[:1], config, tmp_path)["train"]
    expected = json.loads((whole[0] / "train" / "result.json").read_text())["figures"]
    assert result.figures == expected
    steps = [row["step"] for row in training.read_metrics(tmp_path / "train" / "metrics.jsonl")]
    assert steps == [22 * epoch for epoch in range(1, 7)]


# TensorStore's other reads fail behind the first one, in coroutines that nobody awaits any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_ends_the_run(whole, config, tmp_path):
    shutil.copytree(whole[0] / "train", tmp_path / "train")
    saved = tmp_path / "train" / "variables" / "1" / "state"
    for path in saved.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(training.DamagedCheckpointError, match="variables/1 is damaged"):
        pipeline.run_stages(stages.STAGES[:2], config, tmp_path)
    gc.collect()


def test_the_teacher_can_run_once_over_a_few_views(whole, config, tmp_path):
    first, killed = tmp_path / "first", tmp_path / "killed"
    for stage in ("train", "prune", "shrink"):
        shutil.copytree(whole[0] / stage, first / stage)
    config.distil.views = 2
    done = pipeline.run_stages(stages.STAGES[:4], config, first)["distil"]
    with np.load(first / "distil" / "teacher_logits.npz") as file:
        assert file["logits"].shape == (2, 1437, 10)
    shutil.copytree(first, killed)
    for path in (killed / "distil").iterdir():  # as if it was killed before the first epoch
        if path.name not in ("started.json", "teacher_logits.npz"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(killed, tmp_path / "damaged")
    assert pipeline.run_stages(stages.STAGES[:4], config, killed)["distil"].figures == done.figures
    cache = tmp_path / "damaged" / "distil" / "teacher_logits.npz"
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.raises(training.DamagedCacheError, match="is damaged"):
        pipeline.run_stages(stages.STAGES[:4], config, tmp_path / "damaged")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.epocs=3", 'Did you mean "epochs" instead of "epocs"?'),
        ("--workdr=x", "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_meant(tmp_path, flag, message):
    command = [*COMMAND, f"--workdir={tmp_path / 'run'}", flag]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_expectations_say_what_was_missed(config):
    row = dict(parameters=1, nonzero=1, macs=1, gzip_bytes=1, entropy_bytes=1)
    dense = report.StageRow("train", **row, file_bytes=800, accuracy=0.99)
    int8 = report.StageRow("quantize", **row, file_bytes=101, accuracy=0.984)
    reached = reports.expectations(config.expect, [dense, int8], [])
    assert [text.split()[0] for text, good in reached.items() if not good] == ["accuracy", "file"]
