"""The benchmark of shrunk networks shrinks, exports and counts; times are not tested."""

from compressjax import models
from experiments.bench import slim_latency, timing


def test_half_of_the_multiply_accumulates_is_left_and_both_files_run():
    model = models.VGG16(num_classes=10, widths=(4,) * 13)
    row = slim_latency.measure(
        slim_latency.Case(model, 32), macs=0.6, multiple=1, rounds=2, clock=timing.Clock.WALL
    )
    assert row["macs"]["shrunk"] <= 0.6 * row["macs"]["dense"]
    assert row["parameters"]["shrunk"] < row["parameters"]["dense"]
    assert max(row["widths"][0]) < 4
    assert list(row["files"]) == ["float", "int8"]
    for found in row["files"].values():
        assert found["bytes"]["shrunk"] < found["bytes"]["dense"]
        assert list(found["timings"]) == ["dense", "shrunk"]
        assert found["timings"]["dense"].ratio == 1.0
    assert slim_latency.line("net", "int8", row).startswith("net          int8")
