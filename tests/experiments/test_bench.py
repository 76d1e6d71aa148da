"""The benchmarks run and count correctly; how long anything takes is not tested."""

import math

import optax
import pytest

from compressjax import pruning
from experiments.bench import pruned_step, timing


def test_programs_take_turns_and_are_compared_round_by_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = 0.0, []
    monkeypatch.setattr(timing.Clock, "now", lambda self: now)

    def program(name: str, cost: float) -> None:
        nonlocal now
        calls.append(name)
        # The machine gets twice as slow with every round.
        now += cost * 2 ** (len(calls) // 2)

    timings = timing.interleaved(
        {"a": lambda: program("a", 1.0), "b": lambda: program("b", 3.0)}, rounds=4, warmup=1
    )
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert timings["a"].ratio == timings["a"].ratio_low == timings["a"].ratio_high == 1
    assert list(timings) == ["a", "b"]
    assert 1.5 <= timings["b"].ratio_low <= timings["b"].ratio <= timings["b"].ratio_high <= 6
    assert timings["b"].median > timings["a"].median


@pytest.mark.parametrize(("names", "rounds", "warmup"), [("", 5, 1), ("ab", 1, 1), ("ab", 5, 0)])
def test_interleaved_refuses_too_little(names: str, rounds: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"found {len(names)} programs, rounds={rounds}"):
        timing.interleaved(dict.fromkeys(names, lambda: None), rounds=rounds, warmup=warmup)


def test_pruned_step_amortises_mask_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned_step, "training_step", lambda tx, batch: lambda: None)
    result = pruned_step.measure(batch=1, rounds=2, every=10, sparsity=0.5, clock=timing.Clock.WALL)
    assert list(result["timings"]) == ["dense", "dense again", "pruned", "pruned, new masks"]
    between, renewing = (result["timings"][n].ratio for n in ("pruned", "pruned, new masks"))
    assert math.isclose(result["amortised_ratio"], 0.9 * between + 0.1 * renewing)


def test_the_measured_step_trains() -> None:
    tx = pruning.prune(optax.sgd(0.05), schedule=pruning.one_shot(0.5))
    program = pruned_step.training_step(tx, batch=4)
    losses = [float(program()) for _ in range(6)]
    assert losses[-1] < losses[0]
