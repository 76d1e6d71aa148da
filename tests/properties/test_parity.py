"""On int8 networks drawn at random, LiteRT puts out the codes of the lattice, every one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import compressjax as cj
from compressjax import tree

# Each keeps `[B, H, W, C]` with an even number of channels.
PIECES = {
    "conv": lambda x: nn.relu(nn.Conv(6, (3, 3))(x)),
    "pointwise": lambda x: nn.Conv(8, (1, 1), use_bias=False)(x),
    "strided": lambda x: nn.relu6(nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)))(x)),
    "dilated": lambda x: nn.Conv(4, (3, 3), kernel_dilation=2)(x),
    "grouped": lambda x: nn.Conv(4, (3, 3), feature_group_count=2)(x),
    "depthwise": lambda x: nn.relu6(
        nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x)
    ),
    "norm": lambda x: nn.BatchNorm(use_running_average=True)(nn.Conv(6, (1, 1))(x)),
    "dense": lambda x: nn.Dense(6)(x),
    "relu": lambda x: nn.relu(x - 0.25),
    "silu": lambda x: nn.silu(x),
    "tanh": lambda x: nn.tanh(x) * 2.0,
    "softmax": lambda x: nn.softmax(x) * x,
    "max_pool": lambda x: nn.max_pool(x, (2, 2), padding="SAME"),
    "avg_pool": lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
    "residual": lambda x: nn.relu(x + nn.Conv(x.shape[-1], (3, 3))(x)),
    "difference": lambda x: x - nn.Conv(x.shape[-1], (1, 1))(x),
    "inception": lambda x: jnp.concatenate(
        [nn.relu(nn.Conv(4, (1, 1))(x)), nn.max_pool(x, (3, 3), padding="SAME")], -1
    ),
    "excite": lambda x: x * nn.sigmoid(nn.Dense(x.shape[-1])(x.mean((1, 2))))[:, None, None],
    "swap": lambda x: jnp.concatenate(jnp.split(x, 2, -1)[::-1], -1),
    "turn": lambda x: jnp.transpose(x, (0, 2, 1, 3)),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))[:, 1:, 1:],
}


class Network(nn.Module):
    pieces: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        for piece in self.pieces:
            x = PIECES[piece](x)
        return nn.Dense(5)(x.mean((1, 2)))


def spread(path, leaf):
    """Variables as training leaves them: statistics and biases that are not zeros and ones."""
    rng = np.random.default_rng(len(path))
    low, high = (0.5, 1.5) if path.endswith(("var", "scale")) else (-0.3, 0.3)
    return leaf if leaf.ndim > 1 else jnp.asarray(rng.uniform(low, high, leaf.shape), "float32")


@settings(max_examples=6)
@given(
    st.lists(st.sampled_from(sorted(PIECES)), min_size=2, max_size=7),
    st.booleans(),
    st.sampled_from([0.01, 1.0, 30.0]),
)
def test_no_code_differs(pieces, per_channel, scale):
    model = Network(tuple(pieces))
    batch = np.random.default_rng(len(pieces)).normal(size=(64, 8, 8, 4)).astype("float32") * scale
    variables = tree.map_with_path(spread, jax.jit(model.init)(jax.random.key(1), batch))
    q = cj.quantize(model.apply, cj.quant.int8(per_channel=per_channel))
    qv = q.calibrate(variables, [batch[:32]])
    parity = cj.export.verify(cj.export.tflite(q, qv, batch[:1], via="litert"), q, qv, batch)
    assert parity.mismatch_fraction == 0, str(parity)
