"""Figures survive a kill, and every step is written once."""

import math
import struct

import pytest
from tensorboardX.proto import event_pb2

from compressjax.training.metrics import MetricsWriter, read_metrics


def test_resume_drops_the_cut_line_and_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": step})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    with MetricsWriter(tmp_path, resume_step=2) as metrics:
        metrics.write(3, {"loss": 30})
    assert read_metrics(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]


def test_not_finite_is_null(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(1, {"loss": math.nan, "norm": math.inf})
    row = {"step": 1, "loss": None, "norm": None}
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]
    with MetricsWriter(tmp_path, resume_step=1):
        pass
    assert read_metrics(tmp_path / "metrics.jsonl") == [row]


def test_damage_before_the_end_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 of .*metrics.jsonl is not JSON"):
        read_metrics(path)


def test_tensorboard_event_file_holds_the_scalars(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(12, {"accuracy": 0.5, "loss": 2.0})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert found == {"accuracy": (12, 0.5), "loss": (12, 2.0)}
