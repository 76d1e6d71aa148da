"""The benchmark of int8 exports every file and runs it; times are not tested."""

from compressjax import models
from experiments.bench import int8_latency, timing


def test_every_way_to_a_file_is_timed():
    case = int8_latency.Case(models.SmallCNN(num_classes=3, widths=(4,), strides=(1,)), 8, 1.0)
    found = int8_latency.measure(case, rounds=2, clock=timing.Clock.WALL)
    assert list(found) == [
        "int8, via jax2tf",
        "int8, via litert",
        "int8, TFLite converter",
        "float, via jax2tf",
        "float, via litert",
    ]
    assert found["int8, via jax2tf"].ratio == 1.0
    assert all(timing.median > 0 for timing in found.values())


def test_goals_belong_to_networks():
    assert {name: case.goal for name, case in int8_latency.cases(224).items()} == {
        "ResNet-8": 2.8,
        "MobileNetV1": 2.2,
        "MobileNetV2": 2.2,
        "ResNet-18": 3.0,
    }
