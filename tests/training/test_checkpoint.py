"""A checkpoint comes back to the bit, or not at all."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax.training.checkpoint import (
    CheckpointMismatchError,
    Checkpoints,
    DamagedCheckpointError,
)


@pytest.fixture
def state():
    params = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(0), (64, 33))}}
    return {
        "variables": {"params": params, "batch_stats": {"mean": jnp.ones(3)}},
        "opt": optax.adam(1e-3).init(params),
        "rng": jax.random.key(7),
        "keep": np.array([True, False]),
        "step": jnp.int32(5),
    }


def save(directory, state, *steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state)


def restore(directory, template, step=None):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(template, step=step)


def test_round_trip(tmp_path, state):
    save(tmp_path, state, 1, 2, 9)
    back = restore(tmp_path, jax.tree.map(lambda x: x, state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert jax.random.key_data(back["rng"]).tolist() == jax.random.key_data(state["rng"]).tolist()
    np.testing.assert_array_equal(
        back["variables"]["params"]["Dense_0"]["kernel"],
        state["variables"]["params"]["Dense_0"]["kernel"],
    )
    assert type(back["opt"][0]) is type(state["opt"][0])
    assert isinstance(back["keep"], np.ndarray)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 9


def test_none_there(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*: it has none"):
        restore(tmp_path, state)
    save(tmp_path, state, 4)
    with pytest.raises(FileNotFoundError, match=r"no step 3 .*: it has the steps \[4\]"):
        restore(tmp_path, state, step=3)


def test_structure_mismatch_names_the_paths(tmp_path, state):
    save(tmp_path, state, 1)
    kernel = state["variables"]["params"]["Dense_0"]["kernel"]
    other = {
        **state,
        "variables": {"params": {"Dense_0": {"kernel": kernel[:, :8], "bias": jnp.ones(8)}}},
    }
    with pytest.raises(CheckpointMismatchError) as error:
        restore(tmp_path, other)
    text = str(error.value)
    assert "kernel: expected float32[64, 8], found float32[64, 33]" in text
    assert "variables/params/Dense_0/bias: expected, not in the checkpoint" in text
    assert "variables/batch_stats/mean: in the checkpoint, not expected" in text
    assert str(tmp_path) in text


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_metadata(folder):
    (folder / "state" / "_METADATA").unlink()


def lose_index(folder):
    for path in (folder / "index").iterdir():
        path.unlink()


# TensorStore's other reads fail behind the first one, in coroutines that nobody awaits any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, truncate, lose_metadata, lose_index])
def test_damage_is_refused_and_named(tmp_path, state, damage):
    save(tmp_path, state, 1, 2)
    damage(tmp_path / "2")
    with pytest.raises(DamagedCheckpointError) as error:
        restore(tmp_path, state)
    text = str(error.value)
    del error
    gc.collect()
    assert str(tmp_path / "2") in text
    assert "Delete that directory to go on from an earlier step" in text
    assert int(restore(tmp_path, state, step=1)["step"]) == 5


def test_steps_only_go_up(tmp_path, state):
    save(tmp_path, state, 4)
    with pytest.raises(ValueError, match="step 4 would come after step 4"):
        save(tmp_path, state, 4)
