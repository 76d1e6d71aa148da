"""What a scan's body is, what a scan ties together, and how it runs with positions gone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from compressjax.graph.channels import couple, frozen, groups
from compressjax.graph.interpret import interpret
from compressjax.graph.narrow import narrow
from compressjax.graph.reorder import reorder
from compressjax.graph.trace import trace

SHAPES = {"a": (3, 8), "w": (2, 8, 8), "g": (2, 1, 8), "b": (8, 2)}
X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def drawn(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def stack(step, **options):
    """`step(h, w, g)` for each slice of w and g, between two products."""

    def fn(v, x):
        body = lambda h, p: (step(h, *p), None)  # noqa: E731
        return lax.scan(body, x @ v["a"], (v["w"], v["g"]), **options)[0] @ v["b"]

    return fn


def analyse(fn, shapes=None):
    variables = {k: jax.ShapeDtypeStruct(s, "float32") for k, s in (shapes or SHAPES).items()}
    graph = reorder(trace(fn, variables, X, keep_custom=False))
    channels = couple(graph, {})
    return {group.name: group for group in groups(graph, channels)}, frozen(graph, channels)


def test_the_body_is_a_graph_of_one_step():
    fn = stack(lambda h, w, g: jnp.tanh(jnp.sin(h) @ w) * g)
    variables = drawn(SHAPES)
    graph = trace(fn, variables, X)
    assert [op.kind for op in graph.ops] == ["dot_general", "scan", "dot_general"]
    scan = graph.ops[1]
    assert scan.name == "g" and scan.variables == ("w", "g") and scan.macs == 2 * 4 * 8 * 8
    assert graph.notes == ("scan is one operation: only cuts of channels look inside it",)
    body = scan.body
    assert [(op.name, op.kind) for op in body.ops if op.kind != "broadcast_in_dim"] == [
        ("scan(g)/sin_0", "sin"),
        ("w", "dot_general"),
        ("scan(g)/tanh_0", "tanh"),
        ("g", "mul"),
    ]
    assert [value.shape for value in body.inputs.values()] == [(4, 8), (8, 8), (1, 8)]
    assert [value.shape for value in body.outputs] == [(4, 8)]
    np.testing.assert_allclose(interpret(graph, variables, X), fn(variables, X), rtol=1e-5)


@pytest.mark.parametrize("keep_custom", [True, False])
def test_notes_of_a_body_say_where_they_hold(keep_custom):
    @jax.custom_vjp
    def double(x):
        return x * 2

    double.defvjp(lambda x: (x * 2, None), lambda _, g: (g,))

    def step(h, w, g):
        h = lax.while_loop(lambda c: c.sum() < 1, lambda c: c + 1, double(h))
        return lax.scan(lambda c, _: (c @ w, None), h, None, length=2)[0] * g

    notes = trace(stack(step), drawn(SHAPES), X, keep_custom=keep_custom).notes
    opened = "where channels inside scan are cut, double is opened: its own derivative rule is not"
    assert [note.removesuffix(" used") for note in notes] == [
        "scan is one operation: only cuts of channels look inside it",
        *([] if keep_custom else [opened]),
        "while is left whole: transforms do not look inside it",
    ]


def test_layers_are_cut_alike_and_their_number_stays():
    found, why = analyse(stack(lambda h, w, g: jnp.tanh(h @ w) * g))
    (group,) = found.values()
    assert (group.name, group.size) == ("a", 8)
    assert {(m.path, m.axis): (m.makes, m.kernel) for m in group.members} == {
        ("a", 1): (True, True),
        ("w", 2): (True, True),
        ("w", 1): (False, False),
        ("g", 2): (True, False),
        ("b", 0): (False, False),
    }
    assert why == {"b[1]": "output 0 of the function has this width"}


def test_kernels_by_the_number_of_the_layer_are_found():
    """Their index is carried along, and depends on no input."""
    fn = lambda v, x: lax.fori_loop(0, 2, lambda i, h: h @ v["w"][i], x @ v["a"]) @ v["b"]  # noqa: E731
    found, why = analyse(fn)
    kernels = {(m.path, m.axis) for m in found["a"].members if m.kernel}
    assert kernels == {("a", 1), ("w", 2)} and found["a"].size == 8
    assert "sliced where the data says" in why["w[0]"]


def test_a_kernel_that_is_carried_along_is_found():
    def fn(v, x):
        body = lambda s, g: ((s[0] @ s[1], s[1] * g), None)  # noqa: E731
        return lax.scan(body, (x @ v["a"], v["w"]), v["g"])[0][0] @ v["b"]

    found, _ = analyse(fn, {"a": (3, 8), "w": (8, 8), "g": (2,), "b": (8, 2)})
    assert {(m.path, m.axis) for m in found["a"].members if m.kernel} == {("a", 1), ("w", 1)}


def test_a_kernel_that_an_input_turns_is_no_kernel():
    def fn(v, x):
        body = lambda s, _: ((s[0] @ s[1], s[1] * jnp.cos(s[0][:1].T)), None)  # noqa: E731
        return lax.scan(body, (x @ v["a"], v["w"]), None, length=2)[0][0] @ v["b"]

    found, _ = analyse(fn, {"a": (3, 8), "w": (8, 8), "b": (8, 2)})
    assert {(m.path, m.axis) for m in found["a"].members if m.kernel} == {("a", 1)}


FROZEN = {
    "accumulation": (lambda h, w, g: jnp.cumsum(h, 1) @ w, "scan(g)/cumsum_0: accumulates over"),
    "softmax": (lambda h, w, g: jax.nn.softmax(h) @ w, "reduce_max goes over the channels"),
    "a while loop": (lambda h, w, g: lax.while_loop(lambda c: c.sum() < 1, lambda c: c + 1, h) @ w,
                     "scan(g)/while_0: no rule for while"),
    "a branch": (lambda h, w, g: lax.cond(g[0, 0] > 0, jnp.sin, jnp.cos, h) @ w,
                 "no rule for cond"),
    "a loop in it": (lambda h, w, g: lax.scan(lambda c, _: (jnp.sort(c), None), h, None, 2)[0] @ w,
                     "scan(g)/scan_0/sort_0: sorts the channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_the_body_cannot_cut_is_named(name):
    step, reason = FROZEN[name]
    found, why = analyse(stack(step))
    assert not any(m.path == "w" and m.axis == 1 for g in found.values() for m in g.members)
    assert reason in why["w[1]"] and reason in why["a[1]"]


def test_the_other_parts_of_a_carry_are_cut():
    def fn(v, x):
        body = lambda s, w: ((jnp.sort(s[0]), jnp.tanh(s[1] @ w)), None)  # noqa: E731
        left, right = lax.scan(body, (x @ v["c"], x @ v["a"]), v["w"])[0]
        return left.sum(-1, keepdims=True) + right @ v["b"]

    found, why = analyse(fn, {**SHAPES, "c": (3, 8)})
    assert found["a"].size == 8 and "sorts the channels" in why["c[1]"]
    assert list(why) == ["b[1]", "c[1]"]


@pytest.mark.parametrize(
    ("step", "start", "free"),
    [
        (lambda h, x: h + jnp.tanh(x), 0.0, True),
        (lambda h, x: h * jax.nn.sigmoid(x) + x, 0.0, True),
        (lambda h, x: jax.nn.sigmoid(h) + x, 0.0, False),
        (lambda h, x: h + x, 1.0, False),
    ],
    ids=["stays zero", "gated", "leaves zero", "starts at one"],
)
def test_a_state_counts_as_zero_where_it_is_cut_if_it_starts_and_stays_so(step, start, free):
    def fn(v, x):
        def body(h, g):
            h = step(h, x @ v["a"] * g)
            return h, h.sum(-1)

        return lax.scan(body, jnp.full((4, 8), start), v["g"])[1]

    found, why = analyse(fn, {"a": (3, 8), "g": (2,)})
    assert ("a" in found) == free
    assert free or "reduce_sum goes over the channels" in why["a[1]"]


KEEP = np.array([True, False, True, True, False, True, False, True])
H, W = (drawn({"h": (4, 8), "w": (3, 8, 8)})[name] for name in "hw")
WHOLE = {n: np.ones(n, bool) for n in (3, 4, 8)}
STEPS = np.linspace(0.5, 1.5, 8, dtype=np.float32)[None]

# Functions of [4, 8] and [3, 8, 8], whose axes of length 8 are cut.
SAME = {
    "layers": lambda h, w: lax.scan(lambda c, p: (jnp.tanh(c @ p), None), h, w)[0],
    "backwards": lambda h, w: lax.scan(lambda c, p: (c @ p, None), h, w, reverse=True)[0],
    "unrolled": lambda h, w: lax.scan(lambda c, p: (c @ p, None), h, w, unroll=2)[0],
    "of length": lambda h, w: lax.scan(lambda c, _: (c @ w[0], None), h, None, length=4)[0],
    "never": lambda h, w: lax.scan(lambda c, p: (c @ p, None), h, w[:0])[0],
    "compiled": lambda h, w: lax.scan(jax.jit(lambda c, p: (c @ p, None)), h, w)[0],
    "in pairs": lambda h, w: lax.scan(
        lambda c, p: lax.scan(lambda c, q: (jnp.tanh(c @ q), None), c, p), h, w[None]
    )[0],
    "exchanged": lambda h, w: lax.scan(
        lambda c, p: ((c[1], jnp.tanh(c[0] @ p)), None), (h, 2 * h), w
    )[0][0],
    "counted": lambda h, w: lax.fori_loop(0, 3, lambda i, c: c * (i + 1) + 0 * (c @ w[i]), h),
    "mapped": lambda h, w: lax.map(lambda row: jnp.sin(row @ w[0]), h),
    "mapped in batches": lambda h, w: lax.map(lambda row: row @ w[1], h, batch_size=3),
    "constant": lambda h, w: lax.scan(lambda c, p: ((c @ p) * STEPS, None), h, w)[0],
    "random": lambda h, w: lax.scan(
        lambda c, k: (c * jax.random.normal(k, (4, 8)) + c @ w[0], None),
        h,
        jax.random.split(jax.random.key(0), 2),
    )[0],
}


@pytest.mark.parametrize("name", SAME)
def test_result_is_the_whole_result_at_kept_positions(name):
    fn = SAME[name]
    variables = {"h": H, "w": W}
    graph = trace(lambda v: fn(v["h"], v["w"]), variables, keep_custom=False)
    run = narrow(graph, {"h": (WHOLE[4], KEEP), "w": (WHOLE[3], KEEP, KEEP)})
    found = jax.jit(run)({"h": H[:, KEEP], "w": W[:, KEEP][..., KEEP]})
    cut = {"h": H * KEEP, "w": W * KEEP * KEEP[:, None]}
    expected = np.asarray(jax.jit(fn)(cut["h"], cut["w"]))[:, KEEP]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_collected_keeps_its_steps():
    fn = lambda h, w: lax.scan(lambda c, p: (c @ p, (c, c.sum(0))), h, w)  # noqa: E731
    graph = trace(lambda v: fn(v["h"], v["w"]), {"h": H, "w": W})
    run = narrow(graph, {"h": (WHOLE[4], KEEP), "w": (WHOLE[3], KEEP, KEEP)})
    last, (states, sums) = run({"h": H[:, KEEP], "w": W[:, KEEP][..., KEEP]})
    expected, (all_states, all_sums) = fn(H * KEEP, W * KEEP * KEEP[:, None])
    np.testing.assert_allclose(last, expected[:, KEEP], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(states, all_states[..., KEEP], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, all_sums[..., KEEP], rtol=1e-5, atol=1e-5)


def test_a_checkpointed_body_stays_so():
    policy = jax.checkpoint_policies.dots_saveable
    step = jax.checkpoint(lambda c, p: (jnp.tanh(c @ p), None), policy=policy)
    graph = trace(lambda v: lax.scan(step, v["h"], v["w"])[0], {"h": H, "w": W})
    run = narrow(graph, {"h": (WHOLE[4], KEEP), "w": (WHOLE[3], KEEP, KEEP)})
    small = {"h": H[:, KEEP], "w": W[:, KEEP][..., KEEP]}
    scan = trace(run, small).ops[-1]
    assert scan.kind == "scan" and scan.body.checkpoint["policy"] == policy
    plain = narrow(
        trace(lambda v: SAME["layers"](v["h"], v["w"]), {"h": H, "w": W}),
        {"h": (WHOLE[4], KEEP), "w": (WHOLE[3], KEEP, KEEP)},
    )
    for gradient in (jax.grad(lambda v: run(v).sum()), jax.grad(lambda v: plain(v).sum())):
        expected = jax.grad(lambda v: SAME["layers"](v["h"], v["w"]).sum())(small)
        for name, found in jax.jit(gradient)(small).items():
            np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)


def test_a_cut_that_a_body_forbids():
    fn = lambda v: lax.scan(lambda c, p: (jnp.cumsum(c @ p, 1), None), v["h"], v["w"])[0]  # noqa: E731
    message = r"does not allow the cut of h\[1\], w\[1\], w\[2\]: scan\(w\)/cumsum_0: accumulates"
    with pytest.raises(ValueError, match=message):
        narrow(
            trace(fn, {"h": H, "w": W}),
            {"h": (WHOLE[4], KEEP), "w": (WHOLE[3], KEEP, KEEP)},
        )


def test_a_number_of_layers_that_is_cut():
    fn = lambda v: SAME["layers"](v["h"], v["w"])  # noqa: E731
    some = np.array([True, False, True])
    with pytest.raises(ValueError, match=r"does not allow the cut of w\[0\]: w: the steps of a"):
        narrow(trace(fn, {"h": H, "w": W}), {"w": (some, WHOLE[8], WHOLE[8])})
