"""From a function to a graph: the jaxpr, flattened, with variables and operations named.

`trace` is the only door into jaxprs. What it gives is a flat list of operations on values: calls
are inlined, variable leaves are followed to the operations that use them, and every operation has a
name that does not depend on the batch size. `interpret` runs such a graph; the other modules read
it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.extend import source_info_util

from compressjax import tree
from compressjax.graph import cost
from compressjax.graph.ir import Graph, Literal, Op, Value, reachable

# Calls that only group operations: their bodies are part of the flat list.
_CHECKPOINTS = frozenset({"remat", "remat2", "checkpoint"})
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"}) | _CHECKPOINTS
# Calls that carry a derivative rule of their own.
_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
# Operations that move or cast a variable without computing with it.
MOVEMENT = frozenset(
    {
        "convert_element_type",
        "transpose",
        "reshape",
        "broadcast_in_dim",
        "squeeze",
        "expand_dims",
    }
    | {
        "rev",
        "copy",
        "copy_p",
        "stop_gradient",
        "reduce_precision",
        "optimization_barrier",
    }
)
_CONTRACTIONS = frozenset({"conv_general_dilated", "dot_general", "ragged_dot"})


def trace(fn: Callable[..., Any], variables: Any, *args: Any, keep_custom: bool = True) -> Graph:
    """Traces a pure function of its variables into a graph.

    Args:
      fn: the function, called as `fn(variables, *args)`; from any framework.
      variables: pytree of arrays or `jax.ShapeDtypeStruct`s.
      *args: pytrees of arrays or `jax.ShapeDtypeStruct`s.
      keep_custom: whether a function with a derivative rule of its own (`jax.custom_jvp`,
        `jax.custom_vjp`) stays one operation, so that derivatives are the function's own. Otherwise
        its body is part of the list, except for the activations of `jax.nn`. One that holds a
        convolution or a matrix product is always opened, and `Graph.notes` says so.

    Returns:
      The graph. Its values have the shapes of the arguments; transforms trace again for others.

    Raises:
      Exception: what the function itself raises if the variables or inputs do not fit it, with a
        note that says what was passed.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['w'])
      >>> graph = trace(fn, {'w': np.ones((3, 2))}, np.ones((1, 3)))
      >>> [(op.name, op.kind) for op in graph.ops]
      [('w', 'dot_general'), ('relu_0', 'relu')]
    """
    try:
        closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(variables, *args)
    except Exception as error:
        error.add_note(
            "while tracing the function: check that the variables fit it "
            f"(found {', '.join(list(tree.paths(variables))[:4]) or 'no leaves'}, ...) and that "
            "the inputs have the shapes and dtypes it expects."
        )
        raise
    flat = _Flattener(keep_custom)
    leaves = [_value(var.aval) for var in closed.jaxpr.invars]
    variable_paths = list(tree.paths(variables))
    variable_values = dict(zip(variable_paths, leaves, strict=False))
    input_names = [
        "/".join(filter(None, (f"input_{i}", path)))
        for i, arg in enumerate(args)
        for path in tree.paths(arg)
    ]
    input_values = dict(zip(input_names, leaves[len(variable_paths) :], strict=True))
    flat.links.update({value: path for path, value in variable_values.items()})
    outputs = flat.run(closed.jaxpr, closed.consts, leaves)
    ops = reachable(flat.ops, outputs)
    return Graph(
        ops=_named(ops, [*variable_values.values(), *flat.constants]),
        inputs=input_values,
        variables=variable_values,
        constants=flat.constants,
        outputs=tuple(outputs),
        out_tree=jax.tree.structure(out_shape),
        links=flat.links,
        notes=tuple(dict.fromkeys(flat.notes)),
        checkpoint=flat.checkpoint,
    )


class _Flattener:
    """Collects the operations of nested jaxprs into one list."""

    def __init__(self, keep_custom: bool, where: str = ""):
        self.keep_custom = keep_custom
        self.where = where
        self.ops: list[Op] = []
        self.constants: dict[Value, Any] = {}
        self.links: dict[Value, str] = {}
        self.notes: list[str] = []
        self.checkpoint: Mapping[str, Any] | None = None
        self.caller = ""  # the line that called what is being opened, if that is a library's

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = _value(var.aval)
            self.constants[env[var]] = const

        def read(atom: Any) -> Value:
            return Literal(atom.val) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            values = [read(atom) for atom in eqn.invars]
            for var, value in zip(eqn.outvars, self._eqn(eqn, values), strict=True):
                env[var] = value
        return [read(atom) for atom in jaxpr.outvars]

    def _eqn(self, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
        kind = eqn.primitive.name
        if kind in _INLINED or kind in _CUSTOM:
            body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
            if kind in _CHECKPOINTS and self.checkpoint is None:
                self.checkpoint = eqn.params
            if kind in _INLINED:
                return self._open(eqn, jaxpr, consts, inputs)
            name = jaxpr.debug_info.func_name
            activation = _activation(name, jaxpr, inputs)
            if activation is not None:
                return self._add(eqn, name, inputs, lambda params, x: [activation(x)])
            opened = _holds_contraction(jaxpr)
            if opened:
                self.notes.append(
                    f"{self.where}{name} holds a convolution or matrix product and a derivative "
                    "rule of its own; it is opened, and derivatives of a transformed function "
                    "follow its body"
                )
            if opened or not self.keep_custom:
                if kind != "custom_jvp_call" and not opened:
                    self.notes.append(
                        f"{self.where}{name} is opened: its own derivative rule is not used"
                    )
                return self._open(eqn, jaxpr, consts, inputs)
            return self._add(eqn, name, inputs, _call(eqn))
        if kind == "convert_element_type" and isinstance(inputs[0], Literal):
            dtype = eqn.params["new_dtype"]
            if jax.numpy.issubdtype(dtype, jax.numpy.floating):
                return [Literal(np.asarray(inputs[0].value).astype(dtype))]
        if kind == "scan":
            step = self._step(eqn, inputs)
            self.notes.append("scan is one operation: only cuts of channels look inside it")
            self.notes.extend(step.notes)
            return self._add(eqn, kind, inputs, _bind(eqn.primitive), step)
        if kind in ("while", "cond"):
            self.notes.append(f"{kind} is left whole: transforms do not look inside it")
        return self._add(eqn, kind, inputs, _bind(eqn.primitive))

    def _open(
        self, eqn: Any, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]
    ) -> list[Value]:
        """Runs the body of a call; those of libraries are kept, with the line of the first call."""
        before = self.caller
        if "site-packages" in jaxpr.debug_info.func_src_info:
            self.caller = before or _source(eqn)
        try:
            return self.run(jaxpr, consts, inputs)
        finally:
            self.caller = before

    def _step(self, eqn: Any, inputs: Sequence[Value]) -> Graph:
        """What a scan does in each step; what reads a variable, or a slice of it, is named so."""
        closed = eqn.params["jaxpr"]
        flat = _Flattener(self.keep_custom, "where channels inside scan are cut, ")
        leaves = [_value(var.aval) for var in closed.jaxpr.invars]
        pairs = zip(leaves, inputs, strict=True)
        flat.links.update({leaf: self.links[value] for leaf, value in pairs if value in self.links})
        outputs = flat.run(closed.jaxpr, closed.consts, leaves)
        return Graph(
            ops=tuple(reachable(flat.ops, outputs)),
            inputs={f"input_{i}": leaf for i, leaf in enumerate(leaves)},
            variables={},
            constants=flat.constants,
            outputs=tuple(outputs),
            out_tree=jax.tree.structure([0] * len(outputs)),
            links=flat.links,
            notes=tuple(dict.fromkeys(flat.notes)),
            checkpoint=flat.checkpoint,
        )

    def _add(
        self,
        eqn: Any,
        kind: str,
        inputs: Sequence[Value],
        bind: Callable[..., Sequence[Any]],
        body: Graph | None = None,
    ) -> Sequence[Value]:
        outputs = tuple(_value(var.aval) for var in eqn.outvars)
        variables = tuple(dict.fromkeys(self.links[v] for v in inputs if v in self.links))
        if kind in MOVEMENT and inputs and inputs[0] in self.links:
            self.links[outputs[0]] = self.links[inputs[0]]
        macs = cost.macs(
            eqn.primitive.name,
            [value.shape for value in inputs],
            [value.shape for value in outputs],
            eqn.params,
        )
        self.ops.append(
            Op(
                name="",
                kind=kind,
                inputs=tuple(inputs),
                outputs=outputs,
                params=eqn.params,
                variables=variables,
                macs=macs,
                bind=bind,
                body=body,
                source=self.caller or _source(eqn),
            )
        )
        return outputs


def _value(aval: Any) -> Value:
    return Value(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None))


def _source(eqn: Any) -> str:
    """The line that made an equation, rather in the user's code than in a library that it calls."""
    lines = source_info_util.summarize(eqn.source_info, num_frames=64).splitlines()
    own = [line for line in lines if "site-packages" not in line]
    found = (own or lines or [""])[-1]
    return "" if found == "unknown" else found


def _bind(primitive: Any) -> Callable[..., Sequence[Any]]:
    def bind(params: Mapping[str, Any], *inputs: Any) -> Sequence[Any]:
        outputs = primitive.bind(*inputs, **params)
        return outputs if primitive.multiple_results else [outputs]

    return bind


def _call(eqn: Any) -> Callable[..., Sequence[Any]]:
    """Evaluates one equation with its derivative rule, through JAX's own evaluator."""
    free = list(dict.fromkeys(var for var in eqn.invars if not isinstance(var, jex.Literal)))
    jaxpr = jex.Jaxpr(
        (),
        free,
        eqn.outvars,
        [eqn],
        debug_info=eqn.params["call_jaxpr"].jaxpr.debug_info._replace(
            arg_names=None, result_paths=None
        ),
    )
    run = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))

    def bind(params: Mapping[str, Any], *inputs: Any) -> Sequence[Any]:
        del params  # the derivative rule belongs to the equation as it was traced
        atoms = zip(eqn.invars, inputs, strict=True)
        by_var = {atom: x for atom, x in atoms if not isinstance(atom, jex.Literal)}
        return run(*(by_var[var] for var in free))

    return bind


def _activation(name: str, jaxpr: Any, inputs: Sequence[Value]) -> Callable[[Any], Any] | None:
    """The function of `jax.nn` that a custom call is, if it is one: it works at any shape."""
    function = getattr(jax.nn, name, None)
    if function is None or len(inputs) != 1:
        return None
    try:
        own = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype))
    except (AssertionError, TypeError, ValueError):  # another function that has the same name
        return None
    body = own.jaxpr.eqns[0].params.get("call_jaxpr") if len(own.jaxpr.eqns) == 1 else None
    return function if body is not None and str(body.jaxpr) == str(jaxpr) else None


def _holds_contraction(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in _CONTRACTIONS
        or any(
            _holds_contraction(getattr(sub, "jaxpr", sub))
            for sub in jex.jaxprs_in_params(eqn.params)
        )
        for eqn in jaxpr.eqns
    )


def _named(ops: Sequence[Op], leaves: Iterable[Value], within: str = "") -> tuple[Op, ...]:
    """Gives every operation its name: the variable it computes with, or its kind and order.

    What depends on variables alone is counted apart: its broadcasts come and go with the batch
    size. Names inside a loop (`within`) are unique there, not in the whole graph.
    """
    static = set(leaves)
    counts: dict[str, int] = {}
    taken: set[str] = set()
    named = []
    for op in ops:
        known = all(isinstance(value, Literal) or value in static for value in op.inputs)
        if known:
            static.update(op.outputs)
        by_variable = op.kind not in MOVEMENT and op.variables and op.variables[-1]
        base = by_variable or within + (f"static_{op.kind}" if known else op.kind)
        name = base
        while name in taken or (name == base and not by_variable):
            order = counts.get(base, 1 if by_variable else 0)
            counts[base] = order + 1
            name = f"{base}#{order}" if by_variable else f"{base}_{order}"
        taken.add(name)
        body = op.body
        if body is not None:
            inside = f"{op.kind}({name})/" if by_variable else f"{name}/"
            body = dataclasses.replace(body, ops=_named(body.ops, body.constants, inside))
        named.append(dataclasses.replace(op, name=name, body=body))
    return tuple(named)
