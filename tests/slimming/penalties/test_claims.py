"""What the papers claim: after sparse training, cutting channels changes little or nothing.

A small network learns what a smaller one says, so that most of its channels are not needed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import slimming

RATE = 0.05
WIDTH = 24
X = np.random.default_rng(0).normal(size=(128, 6)).astype(np.float32)


def teacher() -> np.ndarray:
    """What 4 hidden channels say of `X`."""
    rng = np.random.default_rng(1)
    return np.maximum(X @ rng.normal(size=(6, 4)), 0) @ rng.normal(size=(4, 2)) / 2


def network(variables: Any, x: Any) -> jax.Array:
    layers = variables["params"]
    hidden = jax.nn.relu(x @ layers["a"]["kernel"] + layers["a"]["bias"][None])
    return hidden @ layers["b"]["kernel"] + layers["b"]["bias"][None]


def start() -> Any:
    """The untrained variables."""
    rng = np.random.default_rng(2)
    return {
        "params": {
            "a": {"kernel": rng.normal(size=(6, WIDTH)) / 2, "bias": np.zeros(WIDTH)},
            "b": {"kernel": rng.normal(size=(WIDTH, 2)) / 5, "bias": np.zeros(2)},
        }
    }


def groups() -> Any:
    """The groups of the network: one of the hidden channels."""
    return slimming.find_groups(network, start(), X)


def trained(
    parts: Sequence[optax.GradientTransformation], steps: int = 400, params: Any = None
) -> Any:
    """Trains the network with a chain of transformations."""
    tx, target = optax.chain(*parts), jnp.asarray(teacher(), jnp.float32)
    first = jax.tree.map(jnp.float32, params or start()["params"])

    def loss(params: Any) -> jax.Array:
        return jnp.mean((network({"params": params}, X) - target) ** 2)

    @jax.jit
    def run(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    return {"params": run(first)}


def sgd() -> optax.GradientTransformation:
    """The optimizer of all runs."""
    return optax.sgd(RATE, momentum=0.9)


@functools.cache
def plain() -> Any:
    """Trained without a penalty."""
    return trained([sgd()])


def error(variables: Any) -> float:
    """Mean square of what is not learned, over the target's."""
    target = teacher()
    return float(np.mean((network(variables, X) - target) ** 2) / np.mean(target**2))


def norms(variables: Any) -> np.ndarray:
    """The norm of every hidden channel, of all weights that make it."""
    layer = variables["params"]["a"]
    return np.sqrt((np.asarray(layer["kernel"]) ** 2).sum(0) + np.asarray(layer["bias"]) ** 2)


def change(variables: Any, **options: Any) -> float:
    """How much cutting half of the channels changes the outputs, relative to them."""
    shrunk = slimming.shrink(
        network, variables, X, round_to=1, importance=slimming.l2(), **(options or {"ratio": 0.5})
    )
    whole = network(variables, X)
    return float(
        jnp.linalg.norm(shrunk.apply(shrunk.variables, X) - whole) / jnp.linalg.norm(whole)
    )


_PENALTIES: dict[str, Callable[[], list[optax.GradientTransformation]]] = {
    "group_lasso": lambda: [slimming.group_lasso(groups(), 0.01), sgd()],
    "proximal_group_lasso": lambda: [sgd(), slimming.proximal_group_lasso(groups(), 0.02, RATE)],
    "importance_weighted": lambda: [slimming.importance_weighted(groups(), 1e-3), sgd()],
}


@pytest.mark.parametrize("name", _PENALTIES)
def test_channels_fade_and_cutting_them_changes_less(name: str) -> None:
    sparse = trained(_PENALTIES[name]())
    faded = [int((norms(v) < 0.05 * norms(v).max()).sum()) for v in (plain(), sparse)]
    assert error(sparse) < 0.05, name
    assert faded[0] <= 2 and faded[1] >= WIDTH // 2, (name, faded)
    assert change(sparse) < 0.1 * change(plain()), (name, change(sparse), change(plain()))


def test_proximal_steps_leave_whole_channels_at_zero_that_go_without_a_change() -> None:
    sparse = trained(_PENALTIES["proximal_group_lasso"]())
    left = np.flatnonzero(norms(sparse)).tolist()
    assert 4 <= len(left) <= WIDTH // 2
    assert change(sparse, kept={"params/a/kernel": left}) < 1e-6


def test_growing_decay_moves_what_goes_into_what_stays() -> None:
    kept = slimming.shrink(network, plain(), X, round_to=1, ratio=0.5).kept
    grown = trained(
        [slimming.growing(groups(), kept, slimming.staircase(0.05, every=10)), sgd()],
        params=plain()["params"],
    )
    assert change(plain(), kept=kept) > 0.1
    assert change(grown, kept=kept) < 0.01
    assert error(grown) < 0.05


class Normed(nn.Module):
    """A layer with batch norm."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(WIDTH)(x))
        return nn.Dense(2)(nn.relu(x))


@pytest.mark.parametrize("proximal", [False, True])
def test_network_slimming_brings_scales_to_zero(proximal: bool) -> None:
    model = Normed()
    variables = model.init(jax.random.key(0), X, False)
    target = jnp.asarray(teacher(), jnp.float32)
    select = ["**/scale", "BatchNorm_0/bias"]
    penalty = (
        slimming.proximal_slimming(0.02, RATE / (1 - 0.9), select=select)
        if proximal
        else slimming.network_slimming(0.02, select=select)
    )
    sgd = optax.sgd(RATE, momentum=0.9)
    tx = optax.chain(*((sgd, penalty) if proximal else (penalty, sgd)))

    def loss(params: Any, stats: Any) -> Any:
        found, state = model.apply(
            {"params": params, "batch_stats": stats}, X, True, mutable=["batch_stats"]
        )
        return jnp.mean((found - target) ** 2), state["batch_stats"]

    @jax.jit
    def run(params: Any, stats: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, stats, state = carry
            gradients, stats = jax.grad(loss, has_aux=True)(params, stats)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), stats, state), None

        return jax.lax.scan(step, (params, stats, tx.init(params)), length=300)[0]

    params, stats, _ = run(variables["params"], variables["batch_stats"])
    trained = {"params": params, "batch_stats": stats}
    infer = lambda v, x: model.apply(v, x, False)  # noqa: E731
    scale, bias = (np.asarray(params["BatchNorm_0"][name]) for name in ("scale", "bias"))
    assert np.mean((infer(trained, X) - target) ** 2) < 0.1 * np.mean(target**2)
    assert (np.abs(scale) < 0.01).sum() >= WIDTH // 4
    gone = (scale == 0) & (bias == 0)
    assert gone.sum() >= WIDTH // 4 if proximal else not gone.any()
    if proximal:
        kept = {"params/Dense_0/kernel": np.flatnonzero(~gone).tolist()}
        shrunk = slimming.shrink(infer, trained, X, round_to=1, kept=kept)
        np.testing.assert_allclose(
            shrunk.apply(shrunk.variables, X), infer(trained, X), rtol=1e-5, atol=1e-5
        )
