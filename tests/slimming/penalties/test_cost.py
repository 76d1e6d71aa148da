"""The benchmark of penalties runs and counts correctly; how long anything takes is not tested."""

from typing import Any

import numpy as np
import pytest

from experiments.bench import penalties, timing


def test_every_penalty_is_timed_beside_the_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(timing.Clock, "now", lambda self: now)

    def taking(seconds: float) -> Any:
        def program() -> None:
            nonlocal now
            now += seconds

        return program

    names = list(penalties.chains())
    assert names[:2] == ["plain", "plain again"] and len(names) == 8
    costs = iter([2.0, 2.0, *range(3, 9)])
    monkeypatch.setattr(penalties, "training_step", lambda tx, batch: taking(100.0))
    monkeypatch.setattr(penalties, "update", lambda tx: taking(next(costs)))
    result = penalties.measure(batch=1, rounds=2, clock=timing.Clock.WALL)
    assert list(result["timings"]) == list(result["alone"]) == names
    np.testing.assert_allclose(list(result["added"].values()), [0, 0, *np.arange(1, 7) / 100])
