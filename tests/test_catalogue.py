"""The contracts of every method in the catalogue: what all of them promise, checked one by one."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import catalogue

every_row = pytest.mark.parametrize("row", catalogue.ROWS, ids=lambda row: row.name)


def _history(row: catalogue.Row) -> list[Any]:
    return [jax.tree.map(jnp.asarray, row.inputs(i)) for i in range(row.steps)]


def _run(row: catalogue.Row, step: Any) -> tuple[Any, list[Any]]:
    """Runs the row and returns its last output and the state before and after every step."""
    history = _history(row)
    states, output = [row.init(*history[0])], None
    for inputs in history:
        output, state = step(states[-1], *inputs)
        states.append(state)
    return output, states


def _assert_close(found: Any, expected: Any, row: catalogue.Row) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert np.shape(a) == np.shape(b), jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=row.rtol, atol=row.atol, err_msg=str(path)
        )


def _types(state: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), state)


@every_row
def test_initialises_on_shapes_alone(row: catalogue.Row) -> None:
    inputs = _history(row)[0]
    abstract = jax.eval_shape(row.init, *inputs)
    concrete = row.init(*inputs)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert _types(abstract) == _types(concrete)


@every_row
def test_jit_equals_eager(row: catalogue.Row) -> None:
    compiled, compiled_states = _run(row, jax.jit(row.step))
    eager, eager_states = _run(row, row.step)
    _assert_close(compiled, eager, row)
    _assert_close(compiled_states[-1], eager_states[-1], row)


@every_row
def test_traces_once(row: catalogue.Row) -> None:
    chex.clear_trace_counter()
    _run(row, jax.jit(chex.assert_max_traces(row.step, n=1)))


@every_row
def test_state_keeps_its_type(row: catalogue.Row) -> None:
    _, states = _run(row, jax.jit(row.step))
    for state in states[1:]:
        assert jax.tree.structure(state) == jax.tree.structure(states[0])
        assert _types(state) == _types(states[0])


@every_row
def test_equals_the_oracle(row: catalogue.Row) -> None:
    output, _ = _run(row, jax.jit(row.step))
    _assert_close(output, row.oracle([row.inputs(i) for i in range(row.steps)]), row)


def test_row_names_are_unique() -> None:
    names = [row.name for row in catalogue.ROWS]
    assert len(names) == len(set(names))
