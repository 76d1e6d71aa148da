"""NNX modules as pure functions of a variables tree, the form that every transform takes."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from compressjax import tree

_COLLECTIONS = (("params", nnx.Param), ("batch_stats", nnx.BatchStat))


def from_nnx(
    module: nnx.Module, *, mutable: bool = False
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Splits an NNX module into a pure function and its variables.

    The function runs the module in the mode that it is in: call `module.eval()` before for the
    function to compress, `module.train()` for one to train.

    Args:
      module: any NNX module.
      mutable: whether the function also returns the variables after the call, as training with
        batch norm needs.

    Returns:
      `(fn, variables)`. `variables` are nested dictionaries of arrays: the collection `params`,
      `batch_stats` where there are running statistics, and `state` for variables of other types
      (such as the states of random number generators). `fn(variables, *args)` returns the module's
      output, or `(output, new_variables)` if mutable.

    Raises:
      TypeError: if `module` is not an NNX module.

    Example:
      >>> import jax.numpy as jnp
      >>> fn, variables = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> variables['params']['kernel'].shape, fn(variables, jnp.ones((1, 3))).shape
      ((3, 2), (1, 2))
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_nnx takes an nnx.Module, found {type(module).__name__}; "
            "for a Linen module pass module.apply itself to the transforms"
        )
    filters = [kind for _, kind in _COLLECTIONS]
    graphdef, *states = nnx.split(module, *filters, ...)
    names = [*(name for name, _ in _COLLECTIONS), "state"]
    templates = dict(zip(names, states, strict=True))

    def pure(states: Sequence[nnx.State]) -> dict[str, Any]:
        trees = zip(names, map(_to_tree, states), strict=True)
        return {name: leaves for name, leaves in trees if leaves}

    def fn(variables: dict[str, Any], *args: Any) -> Any:
        restored = [_with_leaves(templates[name], variables.get(name, {})) for name in names]
        merged = nnx.merge(graphdef, *restored)
        output = merged(*args)
        return (output, pure(nnx.split(merged, *filters, ...)[1:])) if mutable else output

    return fn, pure(states)


def _to_tree(state: nnx.State) -> dict[str, Any]:
    flat = nnx.to_flat_state(state)
    return tree.from_paths({"/".join(map(str, path)): leaf.get_value() for path, leaf in flat})


def _with_leaves(state: nnx.State, leaves: dict[str, Any]) -> nnx.State:
    by_path = tree.paths(leaves)
    flat = nnx.to_flat_state(state)
    names = ["/".join(map(str, path)) for path, _ in flat]
    if missing := [name for name in names if name not in by_path]:
        raise ValueError(
            f"the variables do not fit the module: missing {', '.join(missing[:3])}; "
            "pass a tree like the one that from_nnx returned"
        )
    return nnx.from_flat_state(
        [
            (path, leaf.replace(by_path[name]))
            for name, (path, leaf) in zip(names, flat, strict=True)
        ]
    )
