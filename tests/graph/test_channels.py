"""What `couple` ties, frees and freezes, primitive by primitive."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.graph.channel_moves import reshape_blocks
from compressjax.graph.channels import couple, frozen, groups
from compressjax.graph.reorder import reorder
from compressjax.graph.trace import trace


def analyse(between, hidden=8, after=None, x=(2, 3)):
    """Groups and reasons of `between(x @ a) @ b`."""
    after = hidden if after is None else after
    shapes = {"a": (3, hidden), "b": (after, 2)}
    variables = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in shapes.items()}
    fn = lambda v, x: between(x @ v["a"]) @ v["b"]  # noqa: E731
    graph = reorder(trace(fn, variables, jax.ShapeDtypeStruct(x, "float32"), keep_custom=False))
    channels = couple(graph, {})
    return {g.name: g for g in groups(graph, channels)}, frozen(graph, channels)


def columns(group, path="a"):
    """For each channel, its positions along the variable's axis."""
    member = next(member for member in group.members if member.path == path)
    return [np.flatnonzero(member.channel == i).tolist() for i in range(group.size)]


FREE = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "softplus": nn.softplus,
    "power": lambda h: h**3 + jnp.sqrt(h * h + 1),
    "cast": lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
    "where": lambda h: jnp.where(h > 0, h, jnp.zeros_like(h)),
    "clip": lambda h: jnp.clip(h, -1, 1),
    "scaled by its position": lambda h: h * jnp.arange(8.0)[None],
    "transposed twice": lambda h: (h.T * 2).T,
    "expanded and squeezed": lambda h: jnp.squeeze(h[:, None, :], 1),
    "reversed": lambda h: h[:, ::-1],
    "pieces": lambda h: jnp.concatenate([h[:, 3:], h[:, :3]], axis=-1),
    "picked": lambda h: jnp.take(h, np.array([1, 0, 3, 2, 5, 4, 7, 6]), axis=-1),
    "shuffled": lambda h: h.reshape(-1, 2, 4).swapaxes(1, 2).reshape(-1, 8),
    "summed over the batch": lambda h: h - h.mean(0, keepdims=True),
    "sorted along the batch": lambda h: jnp.sort(h, axis=0),
    "accumulated along the batch": lambda h: jnp.cumsum(h, axis=0),
    "sliced by data along the batch": lambda h: jax.lax.dynamic_slice(h, (1, 0), (1, 8)),
    "the largest of the batch": lambda h: jax.lax.top_k(h.T, 2)[0].sum().reshape(1, 1) + h,
    "looked up along the batch": lambda h: h[jnp.array([1, 0])],
    "looked up and summed": lambda h: h + jnp.take(h, jnp.array([1, 0]), 0).sum(-1)[:, None],
    "looked up or nan": lambda h: (
        h + jnp.take(h, jnp.array([1, 0]), 0, mode="fill", fill_value=jnp.nan).sum(-1)[:, None]
    ),
    "sliced at each place of the batch": lambda h: jax.vmap(
        lambda i: jax.lax.dynamic_slice(h, (i, 0), (1, 8))[0]
    )(jnp.array([1, 0])),
    "checkpointed": jax.checkpoint(lambda h: jnp.sin(h)),
    "compiled": jax.jit(jnp.cos),
    "stopped": jax.lax.stop_gradient,
    "layer norm": nn.LayerNorm(use_bias=False, use_scale=False).bind({}),
    "centred layer norm": lambda h: (
        (h - h.mean(-1, keepdims=True)) / (1 + h.var(-1, keepdims=True))
    ),
    "root mean square": lambda h: h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6),
    "a share of the sum": lambda h: jnp.exp(h) / jnp.exp(h).sum(-1, keepdims=True),
    "a sum with constants": lambda h: h + (h + jnp.arange(8.0)[None]).sum(-1, keepdims=True),
    "mixed along the batch": lambda h: jax.nn.standardize(
        (nn.softplus(h).T @ jnp.ones((2, 1))).T, axis=-1
    ),
    "times sorted constants": lambda h: h * jnp.sort(jnp.cos(jnp.arange(8.0)))[None],
    "barrier": jax.lax.optimization_barrier,
    "vmapped": jax.vmap(lambda h: jnp.tanh(h) + 1),
    "looped": lambda h: jax.lax.fori_loop(0, 3, lambda i, c: jnp.cos(c), h),
}


@pytest.mark.parametrize("name", FREE)
def test_each_channel_is_free(name):
    found, why = analyse(FREE[name])
    assert sorted(columns(found["a"])) == [[i] for i in range(8)]
    assert list(why) == ["b[1]"]


TIED = {
    "halves": (lambda h: h[:, :4] * h[:, 4:], 4, [[0, 4], [1, 5], [2, 6], [3, 7]]),
    "neighbours": (lambda h: h[:, ::2] + h[:, 1::2], 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    "mirrored": (lambda h: h + h[:, ::-1], 8, [[0, 7], [1, 6], [2, 5], [3, 4]]),
    "outer pieces": (lambda h: h[:, :2] * h[:, 6:], 2, [[0, 6], [1, 7]]),
    "blocks": (lambda h: (h.reshape(-1, 2, 4) * 2 + jnp.ones((1, 2, 1))).reshape(-1, 8), 8,
               [[0, 4], [1, 5], [2, 6], [3, 7]]),
    "pairs": (lambda h: h.reshape(-1, 4, 2).swapaxes(1, 2).reshape(-1, 8)[:, :4]
              + h.reshape(-1, 4, 2)[:, :, 1], 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_positions_that_go_together(name):
    between, after, expected = TIED[name]
    found, _ = analyse(between, after=after)
    group = found["a"]
    tied = [places for places in columns(group) if len(places) > 1]
    assert sorted(tied) == expected


FROZEN = {
    "softmax": (nn.softmax, "reduce_max goes over the channels"),
    "a sum where cut channels differ": (
        lambda h: h + jnp.cumsum(jnp.exp(h), 0).sum(-1, keepdims=True), "reduce_sum goes over"),
    "a product that cut channels add to": (
        lambda h: jnp.exp(h) @ jnp.ones((8, 8)), "neither factor would be zero"),
    "accumulation": (lambda h: jnp.cumsum(h, -1), "accumulates over the channels"),
    "the largest": (lambda h: jnp.tile(jax.lax.top_k(h, 4)[0], (1, 2)), "picks the largest"),
    "places of the largest": (
        lambda h: h + jax.lax.top_k(h.T, 1)[1].astype(float).sum(), "reduce_sum goes over"),
    "unstacking": (lambda h: jnp.stack(jnp.unstack(h, axis=1), 1), "taken apart"),
    "sorting": (lambda h: jnp.sort(h, -1), "sorts the channels"),
    "a gather": (lambda h: jnp.take_along_axis(h, jnp.argsort(h, 0), -1), "gather"),
    "a window": (
        lambda h: jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME"),
        "a window goes over the channels"),
    "a convolution": (
        lambda h: jax.lax.conv_general_dilated(h[:, None], jnp.ones((1, 1, 3)), (1,), "SAME")[:, 0],
        "a window goes over the channels"),
    "a lookup that fills": (
        lambda h: h + jnp.take(h, jnp.array([0, 9]), 0, mode="fill", fill_value=1.0).sum(
            -1, keepdims=True), "reduce_sum goes over"),
    "an unknown primitive": (lambda h: jnp.fft.irfft(jnp.fft.rfft(h)), "no rule for fft"),
    "a loop": (lambda h: jax.lax.fori_loop(0, 3, lambda i, c: jnp.cumsum(c, 1), h),
               "scan_0/cumsum_0: accumulates over the channels"),
    "a while loop": (lambda h: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c * 2, h),
                     "no rule for while"),
    "a branch": (lambda h: jax.lax.cond(h[0, 0] > 0, jnp.sin, jnp.cos, h), "no rule for cond"),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_cut_is_named(name):
    between, reason = FROZEN[name]
    found, why = analyse(between)
    assert not found
    assert reason in why["a[1]"]


def test_a_slice_by_data_freezes_when_it_does_not_take_the_whole_axis():
    found, why = analyse(lambda h: jax.lax.dynamic_slice(h, (0, 1), (2, 6)), after=6)
    assert not found and "sliced where the data says" in why["a[1]"]


def test_the_output_and_protected_variables_stay():
    variables = {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32)}
    graph = trace(lambda v, x: x @ v["a"] @ v["b"], variables, np.ones((1, 3), np.float32))
    held = {"b": ((np.ones(4, bool), np.ones(2, bool)), "protected")}
    channels = couple(graph, held)
    assert groups(graph, channels) == ()
    assert frozen(graph, channels)["a[1]"] == "protected"


def test_of_axes_that_are_summed_together_the_longest_stays_free():
    def centred_and_scaled(kernel):  # cut positions are zero, then minus the mean
        kernel = kernel - kernel.mean(keepdims=True)
        return kernel / jnp.sqrt((kernel**2).mean(keepdims=True))

    fn = lambda v, x: x @ v["a"] @ centred_and_scaled(v["b"]).T  # noqa: E731
    variables = {"a": np.ones((3, 8), np.float32), "b": np.ones((2, 8), np.float32)}
    graph = trace(fn, variables, np.ones((1, 3), np.float32))
    channels = couple(graph, {})
    assert [group.size for group in groups(graph, channels)] == [8]
    assert "reduce_sum goes over" in frozen(graph, channels)["b[0]"]


def test_several_operands_and_results():
    def between(h):
        keys, values = jax.lax.sort((h, h * 2), dimension=0, num_keys=1)
        return keys + values

    found, _ = analyse(between)
    assert found["a"].size == 8


def test_members_and_width_of_a_grouped_convolution():
    def fn(v, x):
        x = nn.Conv(8, (1, 1)).apply({"params": v["one"]}, x)
        x = nn.Conv(12, (3, 3), feature_group_count=4).apply({"params": v["two"]}, x)
        return nn.Conv(2, (1, 1)).apply({"params": v["three"]}, x)

    kernel = lambda *shape: {"kernel": np.ones(shape, "f"), "bias": np.ones(shape[-1:], "f")}  # noqa: E731
    variables = {
        "one": kernel(1, 1, 3, 8),
        "two": kernel(3, 3, 2, 12),
        "three": kernel(1, 1, 12, 2),
    }
    graph = trace(fn, variables, np.ones((1, 4, 4, 3), "f"), keep_custom=False)
    first, second = groups(graph, couple(graph, {}))
    assert (first.name, first.size, first.width) == ("one/kernel", 2, 4)
    assert (second.name, second.size, second.width) == ("two/kernel", 3, 4)
    roles = {(m.path, m.axis): (m.makes, m.kernel) for m in first.members}
    assert roles == {
        ("one/kernel", 3): (True, True),
        ("one/bias", 0): (True, False),
        ("two/kernel", 2): (False, False),
    }
    np.testing.assert_array_equal(first.members[0].channel, [0, 1, 0, 1, 0, 1, 0, 1])


def test_a_kernel_that_is_transposed_and_scaled_is_still_found():
    variables = {
        "w": np.ones((8, 3), "f"),  # output features first
        "gain": np.ones(8, "f"),
        "out": np.ones((8, 2), "f"),
    }

    def fn(v, x):
        return jnp.tanh(x @ (v["w"] * v["gain"][:, None]).T) @ v["out"]

    graph = trace(fn, variables, np.ones((1, 3), "f"), keep_custom=False)
    (group,) = groups(graph, couple(graph, {}))
    makes = {(m.path, m.axis) for m in group.members if m.kernel}
    assert makes == {("w", 0), ("gain", 0)} and group.size == 8


def test_channels_that_no_kernel_makes():
    variables = {"token": np.ones((1, 6), "f"), "out": np.ones((6, 2), "f")}
    fn = lambda v, x: (x.sum(-1, keepdims=True) + v["token"]) @ v["out"]  # noqa: E731
    graph = trace(fn, variables, np.ones((1, 2), "f"))
    (group,) = groups(graph, couple(graph, {}))
    assert (group.name, group.size) == ("token", 6)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((4, 6), (24,), [([0, 1], [0])]),
        ((24,), (4, 6), [([0], [0, 1])]),
        ((4, 6, 5), (8, 3, 5), [([0, 1], [0, 1]), ([2], [2])]),
        ((1, 7), (7, 1, 1), [([1], [0])]),
        ((), (1,), []),
    ],
)
def test_reshape_blocks(old, new, expected):
    assert reshape_blocks(old, new) == expected
