"""The benchmarks run and count correctly; how long anything takes is not tested."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import models, pruning
from experiments import networks
from experiments.bench import (
    conversion,
    global_selection,
    parity,
    post_training,
    pruned_step,
    quantized_step,
    scores,
    timing,
    trained,
)


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
    methods = ["pruned", "RigL", "straight-through"]
    programs = [name for method in methods for name in (method, f"{method}, new masks")]
    assert list(result["timings"]) == ["dense", "dense again", *programs]
    for method in methods:
        between, renewing = (result["timings"][name].ratio for name in programs[:2])
        programs = programs[2:]
        assert math.isclose(result["amortised"][method], 0.9 * between + 0.1 * renewing)


def test_scores_are_timed_beside_the_dense_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "training_step", lambda tx, batch: lambda: None)
    monkeypatch.setattr(scores, "with_loss", lambda tx, batch: tx)
    names = ["OBD between samples", "OBD sampling"]
    result = scores.measure(names, batch=1, rounds=2, clock=timing.Clock.WALL)
    assert list(result["timings"]) == ["dense", "dense again", *names]


def test_the_measured_step_trains() -> None:
    tx = pruning.prune(optax.sgd(0.05), schedule=pruning.one_shot(0.5))
    program = pruned_step.training_step(tx, batch=4)
    losses = [float(program()) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_selection_is_timed_and_its_memory_counted() -> None:
    result = global_selection.measure(weights=200_000, kept=0.3, rounds=2, clock=timing.Clock.WALL)
    assert list(result["timings"]) == ["NumPy's partition", "keep_largest"]
    assert result["surplus"] == 0
    assert result["planned_over_weights"] >= 1.25
    assert result["peak_over_weights"] is None or result["peak_over_weights"] > 1


@pytest.fixture(scope="module")
def small() -> trained.Trained:
    """A drawn network on random images, and labels that it gets right nine times in ten."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (40, 8, 8, 1)), jnp.uint8)

    def prepare(images: jax.Array) -> jax.Array:
        return images.astype(jnp.float32) / 128.0 - 1.0

    data = networks.Data(
        images, jnp.zeros(40), images, jnp.zeros(40), 3, lambda rng, x: prepare(x), prepare
    )
    network = parity.untrained(
        models.SmallCNN, {"widths": (8, 12), "strides": (2, 2)}, data, seed=1
    )
    right = network.apply(network.variables, prepare(images)).argmax(-1)
    labels = jnp.where(jnp.arange(40) % 10 == 0, (right + 1) % 3, right)
    return network._replace(data=data._replace(test_labels=labels))


def test_weights_are_drawn_with_dead_and_dominant_channels() -> None:
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 8, 512), jnp.float32),
        "scale": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    drawn = parity.draw(shapes, seed=0)
    dead = (drawn["kernel"] == 0).all((0, 1, 2))
    assert 5 < dead.sum() < 40
    assert np.square(drawn["kernel"][..., ~dead]).sum((0, 1, 2)).mean() == pytest.approx(1, rel=0.1)
    sizes = np.abs(drawn["scale"])
    assert all(5 < count < 40 for count in (sum(sizes == 0), sum((0 < sizes) & (sizes < 1e-5))))
    assert 5 < sum(sizes > 5) < 40
    assert (drawn["scale"] < 0).any()
    np.testing.assert_array_equal(drawn["kernel"], parity.draw(shapes, seed=0)["kernel"])


def test_parity_counts_every_value(small: trained.Trained) -> None:
    row = parity.compare("small", small, 30, "litert")
    # Input, two convolutions, mean and logits as int8, and the logits as floats.
    assert row.values == 30 * (64 + 4 * 4 * 8 + 2 * 2 * 12 + 12 + 3 + 3)
    assert (row.images, row.differing, row.max_step, row.first) == (30, 0, 0, None)


def test_parity_finds_what_differs(small: trained.Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    export = cj.export.tflite

    def of_another_network(q: object, qv: dict, x: jax.Array, via: str) -> bytes:
        moved = jax.tree.map(lambda leaf: 1.1 * leaf, qv["params"])
        return export(q, {**qv, "params": moved}, x, via=via)

    monkeypatch.setattr(cj.export, "tflite", of_another_network)
    row = parity.compare("small", small, 30, "litert")
    assert row.differing > 0 and row.max_step > 0 and row.first is not None


def test_answers_are_counted_and_a_refusal_is_no_answer(small: trained.Trained) -> None:
    tested = trained.batches(small.data, small.data.test_images, size=16, count=40)
    assert [x.shape[0] for x in tested] == [16, 16, 8]
    bench = post_training.Bench(small, tested, tested, np.asarray(small.data.test_labels), 1)
    row = post_training.measured(
        bench, "float", "float32", lambda: (small.variables, "a note"), small.apply
    )
    assert (row.correct, row.total, row.note) == (36, 40, "a note")

    def refuse() -> None:
        raise ValueError("no bias")

    row = post_training.measured(bench, "int8", "bias", refuse, small.apply)
    assert row.correct == -1 and "refused: no bias" in post_training.line(row, 36)


@pytest.mark.parametrize("part", ["int8", "peers"])
def test_every_way_to_int8_is_close_to_float(
    part: str, small: trained.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"min-max": cj.quant.min_max()}
    monkeypatch.setattr(post_training.recipe, "usual_observers", lambda: few)
    shown = trained.batches(small.data, small.data.train_images, size=8, count=32)
    tested = trained.batches(small.data, small.data.test_images, size=40, count=40)
    bench = post_training.Bench(small, shown, tested, np.asarray(small.data.test_labels), 2)
    rows = {row.method: row for row in post_training.PARTS[part](bench)}
    assert all(abs(row.correct - 36) <= 3 for row in rows.values()), rows
    if part == "int8":
        assert rows["its file in LiteRT"].correct == rows["auto"].correct
    else:
        assert set(rows) == {"TFLite converter", "litert-quantizer"}


def test_the_folded_module_is_the_folded_function() -> None:
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = models.ResNet8(num_classes=10)
    drawn = parity.draw(jax.eval_shape(model.init, jax.random.key(0), images), seed=0)
    fn, variables = cj.fold_batch_norm(model.apply, drawn, images)
    module = quantized_step.FoldedResNet8(num_classes=10)
    np.testing.assert_allclose(
        module.apply(variables, images), fn(variables, images), rtol=1e-4, atol=1e-5
    )


def test_compiling_is_timed_in_turns_on_fresh_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = 0.0, []
    monkeypatch.setattr(timing.Clock, "now", lambda self: now)

    def make(name: str, cost: float) -> Callable[[], None]:
        made.append(name)

        def program() -> None:
            nonlocal now
            now += cost * len(made)

        return program

    seconds = quantized_step.compile_seconds(
        {"a": lambda: make("a", 1.0), "b": lambda: make("b", 1.0)},
        compiles=3,
        clock=timing.Clock.WALL,
    )
    assert made == ["a", "b"] * 3
    assert seconds == {"a": 3.0, "b": 4.0}


def test_conversions_are_compared_with_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion.peers, "tflite_converter", lambda *args: b"")
    tiny = (lambda v, x: x.mean((1, 2)) @ v["kernel"], {"kernel": jnp.ones((3, 2))}, 6)
    monkeypatch.setattr(conversion, "network", lambda multiplier, size: tiny)
    found = conversion.measure(
        multiplier=1.0, size=4, images=3, batch=2, rounds=2, clock=timing.Clock.WALL
    )
    assert list(found["timings"]) == [
        "TFLite converter",
        "calibrate, export",
        "calibrate",
        "export",
    ]
    assert list(found["floats"]) == ["float, via jax2tf", "float, via litert"]
    assert list(found["parts"]) == ["freeze", "label", "converter", "rewrite"]
    assert found["parameters"] == 6
