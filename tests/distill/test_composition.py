"""Distillation with every other transform: one jitted step, traced once; the loss falls."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import graph as graphs
from compressjax import training


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        return nn.Dense(4)(x.mean((1, 2)))


IMAGES = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 4, 16).astype(np.int32)
HIDDEN = "relu_1"


def _teacher() -> tuple[Callable[..., jax.Array], Any]:
    model = Net(16)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    return model.apply, variables


def _run(
    loss_fn: Any, variables: Any, tx: optax.GradientTransformation, steps: int = 8
) -> tuple[list[float], Any, Any]:
    traces = []

    @jax.jit
    def step(variables: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        traces.append(1)

        def of_params(params: Any) -> Any:
            return loss_fn({**variables, "params": params}, IMAGES, LABELS, None)

        gradient = jax.value_and_grad(of_params, has_aux=True)
        (loss, (changed, _)), gradients = gradient(variables["params"])
        updates, state = tx.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {**changed, "params": params}, state, loss

    state, losses = tx.init(variables["params"]), []
    for _ in range(steps):
        variables, state, loss = step(variables, state)
        losses.append(float(loss))
    assert len(traces) == 1
    return losses, variables, state


def _live(train: Callable[..., Any]) -> training.Forward:
    def forward(variables: Any, x: jax.Array, rng: Any) -> tuple[jax.Array, Any]:
        logits, statistics = train(variables, x)
        return logits, {**variables, **statistics}

    return forward


def _training_mode(model: Net) -> Callable[..., Any]:
    return lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])


def _hinton(forward: training.Forward) -> Any:
    apply, variables = _teacher()
    return training.distilled(forward, lambda x: apply(variables, x), cj.distill.hinton)


def test_distil_while_pruning() -> None:
    student = Net(8)
    start = jax.jit(student.init)(jax.random.key(1), IMAGES)
    schedule = cj.pruning.polynomial(0.5, begin=0, end=4, every=1)
    tx = cj.prune(optax.adam(1e-2), schedule=schedule, select="**/kernel")
    losses, variables, state = _run(_hinton(_live(_training_mode(student))), start, tx)
    assert losses[-1] < losses[0]
    keep = cj.masks(state)["Conv_1"]["kernel"]
    assert 0.4 < np.mean(keep) < 0.6
    np.testing.assert_array_equal(variables["params"]["Conv_1"]["kernel"][~keep], 0.0)


@pytest.mark.parametrize("transform", ["shrink", "factorize"])
def test_distil_a_smaller_network_in_training_mode(transform: str) -> None:
    apply, variables = _teacher()
    small = (
        cj.shrink(apply, variables, IMAGES, ratio=0.5)
        if transform == "shrink"
        else cj.factorize(apply, variables, IMAGES, rank=0.5)
    )
    train = small.transform(_training_mode(Net(16)))
    losses, tuned, _ = _run(_hinton(_live(train)), small.variables, optax.adam(1e-2))
    assert losses[-1] < losses[0]
    before, after = (
        np.square(small.apply(v, IMAGES) - apply(variables, IMAGES)).mean()
        for v in (small.variables, tuned)
    )
    assert jax.tree.structure(tuned) == jax.tree.structure(small.variables)
    assert np.isfinite([before, after]).all() and before > 0


def test_the_float_model_teaches_the_int8_one_by_logits_and_by_features() -> None:
    apply, variables = _teacher()
    folded, variables = cj.fold_batch_norm(apply, variables, IMAGES)
    q = cj.quantize(folded, cj.quant.int8())
    qv = q.calibrate(variables, [IMAGES])
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)  # noqa: E731
    qv = {**qv, "params": jax.tree.map(noise, qv["params"])}

    def forward(variables: Any, x: jax.Array, rng: Any) -> tuple[jax.Array, Any]:
        return q.observe(variables, x)

    loss_fn = training.distilled(forward, lambda x: folded(variables, x), cj.distill.hinton)
    losses, _, _ = _run(loss_fn, qv, optax.adam(1e-3))
    assert losses[-1] < losses[0]


def test_an_int8_teacher_teaches_a_float_student() -> None:
    apply, variables = _teacher()
    q = cj.quantize(apply, cj.quant.int8())
    qv = q.calibrate(variables, [IMAGES])
    student = Net(8)
    start = jax.jit(student.init)(jax.random.key(1), IMAGES)
    loss_fn = training.distilled(
        _live(_training_mode(student)), lambda x: q.apply(qv, x), cj.distill.hinton
    )
    losses, _, _ = _run(loss_fn, start, optax.adam(1e-2))
    assert losses[-1] < losses[0]


def test_hints_between_any_functions_train_the_adapter_beside_the_student() -> None:
    apply, variables = _teacher()
    teach = graphs.capturing(apply, HIDDEN)
    rng = np.random.default_rng(3)
    student = {
        "kernel": (0.3 * rng.normal(size=(3, 3, 2, 5))).astype(np.float32),
        "head": rng.normal(size=(5, 4)).astype(np.float32),
    }

    def plain(params: Any, x: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=layout
        )
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]

    look = graphs.capturing(plain, "relu_0")
    shapes = [
        jax.eval_shape(lambda v, x, f=f: f(v, x)[1], v, IMAGES)
        for f, v in ((look, student), (teach, variables))
    ]
    adapter = cj.distill.init_adapter(
        jax.random.key(4), shapes[0]["relu_0"].shape, shapes[1][HIDDEN].shape
    )

    def forward(variables: Any, x: jax.Array, rng: Any) -> tuple[Any, Any]:
        logits, inside = look(variables["params"]["student"], x)
        hint = cj.distill.adapt(variables["params"]["adapter"], inside["relu_0"])
        return (logits, hint), variables

    def loss(of_student: Any, of_teacher: Any, labels: jax.Array) -> jax.Array:
        soft = cj.distill.hinton(of_student[0], of_teacher[0], labels)
        return soft + cj.distill.hint(of_student[1], of_teacher[1][HIDDEN])

    loss_fn = training.distilled(
        forward, lambda x: teach(variables, x), loss, logits=lambda outputs: outputs[0]
    )
    start = {"params": {"student": student, "adapter": adapter}}
    losses, after, _ = _run(loss_fn, start, optax.adam(1e-2))
    assert losses[-1] < losses[0]
    for one, other in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(one, other)


def test_captured_values_are_the_functions_own() -> None:
    apply, variables = _teacher()
    inside = cj.capture(apply, variables, IMAGES, at=["relu_*"])
    assert list(inside) == ["relu_0", "relu_1"]
    head = variables["params"]["Dense_0"]
    logits = inside["relu_1"].mean((1, 2)) @ head["kernel"] + head["bias"].reshape(1, -1)
    np.testing.assert_allclose(logits, apply(variables, IMAGES), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at pattern 'gelu_0' matches none"):
        cj.capture(apply, variables, IMAGES, at="gelu_0")
