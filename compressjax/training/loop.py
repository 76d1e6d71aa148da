"""The training loop: jitted steps, scanned over an epoch, on data that stay on the device.

There is one loop for everything the experiments train: a dense network, one under pruning masks,
a shrunk or folded one, a student, a quantized one. What differs is a pure loss function (see
`losses.py`) and an optax transformation.

On accelerators Python runs once an epoch, not once a step. On CPU the same jitted step is called
from Python: XLA brings convolutions into the form that its fast CPU kernels take only outside of
loops (https://github.com/jax-ml/jax/issues/12868), so inside a scan the gradient of a 3x3 kernel
takes 36 times as long, and a whole step of a small CNN 10 times.

The order of the data, the augmentation and any other randomness are functions of the state's key
and its step, never of how often the program was started, so a resumed run takes the same steps
with the same bits as one that was never stopped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from compressjax.data import epoch_indices

Variables = dict[str, Any]
Metrics = dict[str, jax.Array]
Augment = Callable[[jax.Array, jax.Array], jax.Array]
Draw = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
LossFn = Callable[
    [Variables, jax.Array, Any, jax.Array], tuple[jax.Array, tuple[Variables, Metrics]]
]


class TrainState(NamedTuple):
    """Everything a run needs to go on, as one pytree.

    Attributes:
      step: [] int32, optimizer steps taken.
      variables: the whole Flax dict; the optimizer sees `variables['params']` only.
      opt_state: the optax state.
      rng: [] typed key, the same for the whole run; randomness is folded from it and `step`.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    rng: jax.Array


EpochFn = Callable[[TrainState, jax.Array, Any], tuple[TrainState, Metrics]]


def init_state(
    variables: Variables, tx: optax.GradientTransformation, rng: jax.Array
) -> TrainState:
    """Make the state of a run that starts from `variables`.

    The arrays are copied, because an epoch donates its state: the caller's own stay valid.

    Args:
      variables: Flax dict with a `params` collection.
      tx: the optax transformation that will be given to `make_epoch`.
      rng: [] typed key (`jax.random.key`).

    Returns:
      A state at step 0.

    Raises:
      ValueError: `variables` has no `params` collection.

    Example:
      >>> state = init_state({'params': {'w': jnp.ones(2)}}, optax.sgd(0.1), jax.random.key(0))
      >>> int(state.step)
      0
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has the collections {sorted(variables)} and no 'params': there is nothing "
            "to train. Pass the whole Flax dict, {'params': ..., ...}."
        )

    @jax.jit
    def make(variables: Variables, rng: jax.Array) -> TrainState:
        opt_state = tx.init(variables["params"])
        return jax.tree.map(jnp.copy, TrainState(jnp.int32(0), variables, opt_state, rng))

    return make(variables, rng)


def make_epoch(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    batch_size: int,
    augment: Augment | None = None,
    draw: Draw | None = None,
    scan: bool | None = None,
) -> EpochFn:
    """Make a function that trains one epoch.

    Every epoch shuffles the whole set and drops the remainder that fills no batch. The state given
    to the function is donated: use the one it returns.

    Args:
      loss_fn: `(variables, x, labels, rng) -> (loss [], (variables, metrics))`. The variables it
        returns carry what the forward pass updates (batch statistics, ranges); their `params`
        are ignored.
      tx: an optax transformation over `variables['params']`.
      batch_size: images a step.
      augment: `(rng, images [B, ...]) -> x [B, ...]`, run inside jit; None passes images on.
      draw: `(rng, epoch [], rows [B], images [N, ...], labels) -> (x [B, ...], labels)`, run inside
        jit in place of `augment`, for batches that depend on the examples and the epoch they are
        drawn in (`teacher.Views.draw`); `epoch` counts from 0. None takes those rows of the images
        and of every leaf of the labels.
      scan: compile the epoch as one scan (True) or one step (False); the steps are the same up to
        float rounding. None scans unless the default backend is the CPU.

    Returns:
      `(state, images [N, ...], labels) -> (state, metrics)`; `labels` are [N], or a pytree of such
      arrays, or what `draw` takes; `metrics` are means over the epoch's steps: those of `loss_fn`,
      and `loss` and `grad_norm`.

    Raises:
      ValueError: both `augment` and `draw` are given; when called, the set is smaller than one
        batch.

    Example:
      >>> def loss_fn(variables, x, labels, rng):
      ...     return jnp.mean((x @ variables['params']['w'] - labels) ** 2), (variables, {})
      >>> tx = optax.sgd(0.1)
      >>> state = init_state({'params': {'w': jnp.zeros(2)}}, tx, jax.random.key(0))
      >>> epoch = make_epoch(loss_fn, tx, batch_size=4)
      >>> state, metrics = epoch(state, jnp.ones((8, 2)), jnp.ones(8))
      >>> int(state.step), sorted(metrics)
      (2, ['grad_norm', 'loss'])
    """

    if augment is not None and draw is not None:
        raise ValueError("make_epoch takes augment or draw, not both: let draw augment its images.")
    drawing = _rows(augment) if draw is None else draw

    def train_step(
        state: TrainState, images: jax.Array, labels: Any, rows: jax.Array, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        augment_rng, loss_rng = jax.random.split(jax.random.fold_in(rng, state.step))
        epoch = state.step // steps_per_epoch(images.shape[0], batch_size)
        x, labels = drawing(augment_rng, epoch, rows, images, labels)

        def of_params(params: Any) -> tuple[jax.Array, tuple[Variables, Metrics]]:
            return loss_fn({**state.variables, "params": params}, x, labels, loss_rng)

        params = state.variables["params"]
        (loss, (variables, metrics)), grads = jax.value_and_grad(of_params, has_aux=True)(params)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        state = TrainState(
            step=state.step + 1,
            variables={**variables, "params": params},
            opt_state=opt_state,
            rng=state.rng,
        )
        return state, {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}

    def orders(state: TrainState, num_examples: int) -> tuple[jax.Array, jax.Array]:
        """The epoch's rows [steps, batch_size], and the key of its steps."""
        order_rng, step_rng = jax.random.split(state.rng)
        done = state.step // steps_per_epoch(num_examples, batch_size)
        rng = jax.random.fold_in(order_rng, done)
        return epoch_indices(rng, num_examples, batch_size), step_rng

    def scanned(state: TrainState, images: jax.Array, labels: Any) -> tuple[TrainState, Metrics]:
        order, step_rng = orders(state, images.shape[0])

        def body(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
            return train_step(state, images, labels, rows, step_rng)

        state, metrics = jax.lax.scan(body, state, order)
        return state, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

    def one_step(
        state: TrainState,
        images: jax.Array,
        labels: Any,
        order: jax.Array,
        row: jax.Array,
        rng: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, images, labels, order[row], rng)

    jitted_orders = jax.jit(orders, static_argnums=1)
    jitted_step = jax.jit(one_step, donate_argnums=0)

    def stepped(state: TrainState, images: jax.Array, labels: Any) -> tuple[TrainState, Metrics]:
        order, step_rng = jitted_orders(state, images.shape[0])
        history = []
        for row in range(order.shape[0]):
            state, metrics = jitted_step(state, images, labels, order, row, step_rng)
            history.append(metrics)
        history = jax.device_get(history)
        return state, jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *history)

    if scan is None:
        scan = jax.default_backend() != "cpu"
    return jax.jit(scanned, donate_argnums=0) if scan else stepped


def _rows(augment: Augment | None) -> Draw:
    """Draw the rows themselves, augmented with the step's key."""

    def draw(
        rng: jax.Array, epoch: jax.Array, rows: jax.Array, images: jax.Array, labels: Any
    ) -> tuple[jax.Array, Any]:
        del epoch
        chex.assert_equal_shape_prefix([images, *jax.tree.leaves(labels)], 1)
        x, labels = jax.tree.map(lambda leaf: leaf[rows], (images, labels))
        return x if augment is None else augment(rng, x), labels

    return draw


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Number of whole batches in an epoch.

    Args:
      num_examples: rows in the training set.
      batch_size: rows a step.

    Returns:
      `num_examples // batch_size`.

    Raises:
      ValueError: there is not one whole batch.

    Example:
      >>> steps_per_epoch(100, 32)
      3
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size} and the training set has {num_examples} examples: an "
            f"epoch would have no step. Choose a batch_size between 1 and {num_examples}."
        )
    return num_examples // batch_size
