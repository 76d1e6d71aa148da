"""`shrink` equals the whole network with zeros where it is cut, on every topology."""

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

import compressjax.models as models
from compressjax import tree
from compressjax.nnx import from_nnx
from tests.support.reference import agree, check, draw, in_double, widths
from tests.support.topologies import IMAGE, OTHERS, TOPOLOGIES, linen, norm

CASES = [
    *((body, (IMAGE,), expected) for body, expected in TOPOLOGIES.items()),
    *((body, inputs, expected) for body, (inputs, expected) in OTHERS.items()),
]
NAMES = [body.__name__ for body, _, _ in CASES]


@pytest.mark.parametrize(("body", "inputs", "expected"), CASES, ids=NAMES)
def test_equals_the_network_with_zeros(body, inputs, expected):
    fn, variables = linen(body, *inputs)
    shrunk = check(fn, variables, *inputs)
    assert widths(shrunk) == expected
    assert tree.size(shrunk.variables) < 0.75 * tree.size(variables)
    assert jax.tree.structure(shrunk.variables) == jax.tree.structure(variables)
    with jax.enable_x64(True):
        agree(fn, shrunk, in_double(variables), *in_double(inputs))


@pytest.mark.parametrize("model", ["ResNet8", "MobileNetV2", "SmallCNN", "MLP"])
def test_models_of_the_zoo(model):
    module = {
        "ResNet8": models.ResNet8(num_classes=4, widths=(8, 16, 16)),
        "MobileNetV2": models.MobileNetV2(num_classes=4, multiplier=0.35),
        "SmallCNN": models.SmallCNN(num_classes=4, widths=(8, 16, 16)),
        "MLP": models.MLP(num_classes=4, widths=(32, 16)),
    }[model]
    x = np.random.default_rng(3).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), x))
    shrunk = check(module.apply, variables, x, round_to=8, ratio=0.4)
    assert all(int(width.split("/")[0]) % 8 == 0 for width in widths(shrunk).values())
    assert any(new < old for new, old in (map(int, w.split("/")) for w in widths(shrunk).values()))


def test_nnx_module():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    module = nnx.eval_shape(lambda: Block(nnx.Rngs(0)))
    module.eval()
    fn, variables = from_nnx(module)
    shrunk = check(fn, draw(variables), IMAGE)
    assert widths(shrunk) == {"conv": "4/8"}
    assert shrunk.variables["batch_stats"]["norm"]["mean"].shape == (4,)


def attention(x):
    query, key, value = (nn.Conv(8, (1, 1))(x).reshape(x.shape[0], -1, 2, 4) for _ in range(3))
    weights = nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", query, key))
    y = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(*x.shape[:3], 8)
    return x + nn.Conv(x.shape[-1], (1, 1))(y)


def excite(x):
    gate = nn.Dense(x.shape[-1])(nn.relu(nn.Dense(4)(x.mean((1, 2)))))
    return x * nn.sigmoid(gate)[:, None, None]


def shuffle(x):
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    left, right = jnp.split(x, 2, axis=-1)
    x = jnp.concatenate([left, nn.Conv(4, (3, 3))(right)], axis=-1)
    return x.reshape(*x.shape[:3], 4, 2).transpose(0, 1, 2, 4, 3).reshape(x.shape)


def shared_twice(x):
    conv = nn.Conv(x.shape[-1], (3, 3))
    return nn.relu(conv(nn.tanh(conv(x))))


def looked_up(x):
    """A row of a table for each position of the image."""
    table = nn.Embed(4, x.shape[-1])
    rows = np.arange(x.shape[1] * x.shape[2]) % 4
    return x + table(rows).reshape(1, *x.shape[1:])


STEPS = {
    "conv": lambda x: nn.relu(norm()(nn.Conv(12, (3, 3))(x))),
    "depthwise": lambda x: nn.relu6(
        nn.Conv(2 * x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x)
    ),
    "grouped": lambda x: nn.tanh(nn.Conv(8, (3, 3), feature_group_count=2)(nn.Conv(8, (1, 1))(x))),
    "transposed": lambda x: nn.ConvTranspose(8, (2, 2), strides=(2, 2))(x)[:, ::2],
    "residual": lambda x: nn.relu(
        x + nn.Conv(x.shape[-1], (3, 3))(nn.sigmoid(nn.Conv(6, (1, 1))(x)))
    ),
    "dense block": lambda x: jnp.concatenate([x, nn.relu(nn.Conv(4, (3, 3))(norm()(x)))], axis=-1),
    "gate": lambda x: nn.glu(nn.Conv(16, (1, 1))(x)),
    "uneven parts": lambda x: nn.relu(x[..., 1:]) * nn.Conv(x.shape[-1] - 1, (3, 3))(x[..., :2]),
    "excite": excite,
    "shuffle": shuffle,
    "shared": shared_twice,
    "attention": attention,
    "table": looked_up,
    "waves": lambda x: x + np.sin(np.arange(x.shape[-1], dtype=x.dtype)).reshape(1, 1, 1, -1),
    "layer norm": lambda x: nn.LayerNorm()(x),
    "group norm": lambda x: nn.GroupNorm(num_groups=2)(nn.Conv(8, (1, 1))(x)),
    "share of the sum": lambda x: x / (1 + jnp.abs(x).sum(-1, keepdims=True)),
    "softmax": lambda x: x + nn.Conv(x.shape[-1], (1, 1))(nn.softmax(nn.Conv(5, (1, 1))(x))),
    "larger": lambda x: jax.image.resize(x, (*x.shape[:1], 6, 7, *x.shape[3:]), "bilinear"),
    "pool": lambda x: nn.max_pool(x, (2, 2), strides=(1, 1), padding="SAME"),
    "twice": lambda x: jnp.concatenate([x, -x], axis=-1),
    "flip": lambda x: x[..., ::-1] + x,
}


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6),
    flatten=st.booleans(),
    ratio=st.sampled_from([0.3, 0.5, 0.8]),
    gather=st.booleans(),
)
def test_networks_drawn_at_random(steps, flatten, ratio, gather):
    def body(x):
        x = nn.Conv(8, (3, 3))(x)
        for step in steps:
            x = STEPS[step](x)
        x = nn.relu(nn.Conv(6, (1, 1))(x))
        return nn.Dense(4)(x.reshape(x.shape[0], -1) if flatten else x.mean((1, 2)))

    x = IMAGE[:, :5, :5]
    fn, variables = linen(body, x)
    assert check(fn, variables, x, ratio=ratio, gather=gather).kept
