"""The benchmark of a distillation step runs and sums up; how long it takes is not tested."""

import numpy as np
import pytest

from compressjax import models
from experiments.bench import distillation_step, timing


def test_programs_train_and_are_compared_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation_step, "ResNet8", models.SmallCNN)
    monkeypatch.setattr(distillation_step, "_BLOCKS", ("relu_0", "relu_1"))
    made = distillation_step.programs(batch=4, width=0.5)
    losses = [float(made["distilled, with maps"]()) for _ in range(4)]
    assert np.isfinite(losses).all() and losses[-1] != losses[0]
    assert made["teacher"]().shape == (4, 10)

    monkeypatch.setattr(
        distillation_step, "programs", lambda batch, width: dict.fromkeys(made, lambda: None)
    )
    result = distillation_step.measure(batch=1, width=0.5, rounds=2, clock=timing.Clock.WALL)
    assert set(result["over"]) == {"distilled", "distilled, with maps"}
    median = {name: timed.median for name, timed in result["timings"].items()}
    assert result["over"]["distilled"] == pytest.approx(
        median["distilled"] / (median["student"] + 1.05 * median["teacher"])
    )
