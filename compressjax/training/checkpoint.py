"""Checkpoints that are either whole or refused.

Orbax writes each step into a temporary directory and renames it, so a killed save leaves nothing
behind. It does not notice bytes that changed on the disk afterwards, and its message for a state
of another structure names its own internals; so beside every state lies an index of its leaves
(path, shape, dtype, checksum), which `restore` compares first with what the program expects and
then with what came back. Nothing here falls back to an older step without being told to.
"""

import pathlib
import types
import zlib
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from compressjax import _atomic

State = TypeVar("State")


class DamagedCheckpointError(ValueError):
    """A checkpoint on the disk cannot be read back as it was written."""


class CheckpointMismatchError(ValueError):
    """A checkpoint holds another structure than the program expects."""


class Checkpoints:
    """The checkpoints of one run, in one directory, newest last.

    Use it as a context manager: leaving it closes orbax's threads.

    Args:
      directory: where; made if missing.
      keep: how many of the newest steps stay on the disk.

    Example:
      >>> import tempfile
      >>> state = {'w': np.arange(3.0)}
      >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
      ...     checkpoints.save(7, state)
      ...     checkpoints.latest(), checkpoints.restore(state)['w']
      (7, array([0., 1., 2.]))
    """

    def __init__(self, directory: _atomic.PathLike, *, keep: int = 2) -> None:
        """Open a directory of checkpoints."""
        self.directory = pathlib.Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> Self:
        """Return the open checkpoints."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Close orbax's threads."""
        self._manager.close()

    def latest(self) -> int | None:
        """The newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Write `state` as `step`; returns when it is on the disk.

        Args:
          step: steps taken; larger than every step saved before.
          state: pytree of arrays and typed keys.

        Raises:
          ValueError: that step or a later one is there already.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(
                f"step {step} would come after step {latest} in {self.directory}: the directory "
                "belongs to a run that has gone further. Restore it first, or choose another one."
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), index=ocp.args.JsonSave(_index(state))
        )
        self._manager.save(step, args=items)
        self._manager.wait_until_finished()

    def restore(self, template: State, *, step: int | None = None) -> State:
        """Read a state back.

        Args:
          template: a state with the structure, shapes and dtypes expected, of arrays or of
            `jax.ShapeDtypeStruct`; values are unused.
          step: which; None for the newest.

        Returns:
          The state as it was saved, of the type of `template`; leaves that are NumPy arrays in
          `template` come back as NumPy arrays.

        Raises:
          FileNotFoundError: there is no such step.
          CheckpointMismatchError: its leaves differ from those of `template`.
          DamagedCheckpointError: its files are not what was written.
        """
        steps = sorted(self._manager.all_steps())
        step = self.latest() if step is None else step
        if step is None or step not in steps:
            found = f"it has the steps {steps}" if steps else "it has none"
            wanted = "checkpoint" if step is None else f"step {step}"
            raise FileNotFoundError(f"no {wanted} in {self.directory}: {found}.")
        folder = self.directory / str(step)
        try:
            index = self._manager.restore(
                step, args=ocp.args.Composite(index=ocp.args.JsonRestore())
            )["index"]
        except Exception as error:
            raise _damaged(folder, error) from error
        _check_structure(folder, _index(template, checksum=False), index)
        try:
            abstract = ocp.args.StandardRestore(_abstract(template))
            state = self._manager.restore(step, args=ocp.args.Composite(state=abstract))["state"]
        except Exception as error:
            raise _damaged(folder, error) from error
        for path, leaf in _index(state).items():
            if leaf["crc32"] != index[path]["crc32"]:
                raise _damaged(folder, f"the bytes of {path!r} changed since they were written")
        return state


def _index(state: Any, *, checksum: bool = True) -> dict[str, dict[str, Any]]:
    """Shape, dtype and checksum of every leaf, by path."""
    index = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        entry: dict[str, Any] = {"shape": list(_shape(leaf)), "dtype": str(_dtype(leaf))}
        if checksum:
            array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
            whole = getattr(array, "is_fully_addressable", True)
            entry["crc32"] = zlib.crc32(np.asarray(array).tobytes()) if whole else None
        index[jax.tree_util.keystr(path, simple=True, separator="/")] = entry
    return index


def _shape(leaf: Any) -> tuple[int, ...]:
    return leaf.shape if hasattr(leaf, "shape") else np.shape(leaf)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _abstract(template: State) -> State:
    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return np.empty_like(leaf)

    return jax.tree.map(of_leaf, template)


def _check_structure(
    folder: pathlib.Path, expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]
) -> None:
    """Raise unless both have the same paths with the same shapes and dtypes."""
    lines = [f"  {path}: expected, not in the checkpoint" for path in expected.keys() - found]
    lines += [f"  {path}: in the checkpoint, not expected" for path in found.keys() - expected]
    for path in expected.keys() & found.keys():
        want, have = (f"{e[path]['dtype']}{e[path]['shape']}" for e in (expected, found))
        if want != have:
            lines.append(f"  {path}: expected {want}, found {have}")
    if lines:
        shown = sorted(lines)[:12]
        more = [f"  and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
        raise CheckpointMismatchError(
            "\n".join([f"the checkpoint {folder} has another structure:", *shown, *more])
            + "\nIt was written by a different model or optimizer. Restore it with the settings "
            f"that wrote it, or start over by deleting {folder.parent}."
        )


def _damaged(folder: pathlib.Path, cause: Any) -> DamagedCheckpointError:
    text = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
    return DamagedCheckpointError(
        f"the checkpoint {folder} is damaged: {text}. Delete that directory to go on from an "
        "earlier step, or its parent to start over."
    )
