"""`shrink` knows no framework: NNX, Haiku, Equinox and functions written by hand are cut alike.

Each has layouts of its own: kernels of Equinox have their output features first, its modules take
one example without a batch; Haiku keeps statistics beside parameters, under other names.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from compressjax.nnx import from_nnx
from tests.support.reference import check, widths

IMAGE = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)
TOKENS = np.random.default_rng(2).normal(size=(2, 5, 7)).astype(np.float32)
WORDS = np.random.default_rng(3).integers(0, 7, size=(2, 5))


def filled(shapes, seed=0):
    """Variables with nothing special about them, whatever their framework calls them."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        if not np.issubdtype(x.dtype, np.floating):
            return np.zeros(x.shape, x.dtype)
        noise = rng.normal(size=x.shape).astype(np.float32)
        if x.size == max(
            x.shape, default=1
        ):  # biases, and scales and variances, which have to be positive
            return 1 + 0.2 * noise
        return 2 * noise / np.float32(np.sqrt(np.prod(x.shape)))

    return jax.tree.map(leaf, shapes)


def drawn(shapes):
    """Variables of these shapes, tuples, in lists and dictionaries."""
    return filled(
        jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, "float32"),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
    )


def in_haiku(body, *inputs):
    """A Haiku function of variables that hold parameters and state."""
    network = hk.without_apply_rng(hk.transform_with_state(body))
    params, state = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, train=True))
    fn = lambda v, *args: network.apply(v["params"], v["state"], *args)[0]  # noqa: E731
    return fn, filled({"params": params, "state": state})


def in_equinox(build, forward):
    """An Equinox module of one example, over a batch."""
    model = eqx.filter_eval_shape(build, jax.random.key(0))
    shapes, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    fn = lambda v, x: jax.vmap(lambda one: forward(eqx.combine(v, static), one))(x)  # noqa: E731
    return fn, filled(shapes)


def in_nnx(build):
    """An NNX module in evaluation mode."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    module.eval()
    fn, variables = from_nnx(module)
    return fn, filled(variables)


class TestHaiku:
    def test_convolutions_and_norms(self):
        def body(x, train=False):
            norm = lambda x: hk.BatchNorm(True, True, 0.9)(x, train)  # noqa: E731
            x = jax.nn.relu(norm(hk.Conv2D(8, 3, with_bias=False)(x)))
            y = jax.nn.relu(hk.GroupNorm(2)(hk.Conv2D(12, 1)(x)))
            y = hk.Conv2D(12, 3, feature_group_count=12)(y)
            x = jax.nn.relu(x + norm(hk.Conv2D(8, 1)(y)))
            x = jax.nn.relu(hk.Conv2DTranspose(6, 3, stride=2)(x))
            x = hk.DepthwiseConv2D(2, 3)(x)
            return hk.Linear(4)(hk.avg_pool(x, (2, 2, 1), (2, 2, 1), "SAME").mean((1, 2)))

        fn, variables = in_haiku(body, IMAGE)
        shrunk = check(fn, variables, IMAGE)
        assert widths(shrunk) == {
            "conv2_d/w": "4/8",
            "conv2_d_1/w": "3/6",
            "conv2_d_transpose/w": "3/6",
        }

    def test_training_goes_on(self):
        """Haiku's running averages have a second copy, which only training reads."""

        def body(x, train=False):
            x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), train)
            return hk.Linear(4)(jax.nn.relu(x).mean((1, 2)))

        infer, variables = in_haiku(body, IMAGE)
        network = hk.without_apply_rng(hk.transform_with_state(body))
        train = lambda v, x: network.apply(v["params"], v["state"], x, train=True)  # noqa: E731

        def both(v, x):
            sums = jax.tree.map(lambda leaf: jnp.sum(1.0 * leaf**2), train(v, x)[1])
            return infer(v, x), sums

        shrunk = check(both, variables, IMAGE)
        small, state = jax.jit(shrunk.transform(train))(shrunk.variables, IMAGE)
        whole, masked = jax.jit(train)(shrunk.masked(variables), IMAGE)
        np.testing.assert_allclose(small, whole, atol=1e-5)
        expected = shrunk.cut({**variables, "state": masked})["state"]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, expected)
        assert state["batch_norm/~/mean_ema"]["hidden"].shape == (1, 1, 1, 4)

    def test_channels_first(self):
        def body(x, train=False):
            conv = lambda n: hk.Conv2D(n, 3, data_format="NCHW")  # noqa: E731
            x = hk.InstanceNorm(True, True, data_format="channels_first")(conv(8)(x))
            return hk.Linear(4)(hk.Flatten()(jax.nn.relu(conv(6)(jax.nn.relu(x)))))

        x = IMAGE.transpose(0, 3, 1, 2)
        fn, variables = in_haiku(body, x)
        assert widths(check(fn, variables, x)) == {"conv2_d/w": "4/8", "conv2_d_1/w": "3/6"}

    def test_transformer(self):
        def body(ids, train=False):
            norm = lambda: hk.LayerNorm(-1, True, True)  # noqa: E731
            x = hk.Embed(7, 8)(ids)
            x = x + hk.get_parameter("position", (1, 5, 8), init=jnp.zeros)
            y = norm()(x)
            att = hk.MultiHeadAttention(2, 6, w_init=jnp.zeros, model_size=8)
            x = x + att(y, y, y)
            x = x + hk.Linear(8)(jax.nn.gelu(hk.Linear(12)(hk.RMSNorm(-1)(x))))
            return hk.Linear(4)(norm()(x)[:, 0])

        fn, variables = in_haiku(body, WORDS)
        assert widths(check(fn, variables, WORDS)) == {
            "multi_head_attention/query/w": "3/6",
            "multi_head_attention/value/w": "3/6",
            "multi_head_attention/linear/w": "4/8",
            "linear_1/w": "6/12",
        }


class TestEquinox:
    def test_convolutions_and_norms(self):
        def build(key):
            return {
                "stem": eqx.nn.Conv2d(3, 8, 3, padding=1, key=key),
                "norm": eqx.nn.GroupNorm(2, 8),
                "depthwise": eqx.nn.Conv2d(8, 16, 3, groups=8, padding="SAME", key=key),
                "slope": eqx.nn.PReLU(),
                "up": eqx.nn.ConvTranspose2d(16, 6, 2, 2, key=key),
                "pool": eqx.nn.MaxPool2d(2, 2),
                "shortcut": eqx.nn.Conv2d(8, 6, 1, use_bias=False, key=key),
                "head": eqx.nn.Linear(6, 4, key=key),
            }

        def forward(m, x):
            x = jax.nn.relu(m["norm"](m["stem"](x)))
            y = m["pool"](m["up"](m["slope"](m["depthwise"](x))))
            return m["head"]((y + m["shortcut"](x)).mean((1, 2)))

        fn, variables = in_equinox(build, forward)
        x = IMAGE.transpose(0, 3, 1, 2)
        assert widths(check(fn, variables, x)) == {"stem/weight": "2/4", "up/weight": "3/6"}

    def test_transformer(self):
        def build(key):
            return {
                "embed": eqx.nn.Embedding(7, 8, key=key),
                "norms": [eqx.nn.LayerNorm(8), eqx.nn.RMSNorm(8), eqx.nn.LayerNorm(8)],
                "attention": eqx.nn.MultiheadAttention(
                    2, 8, qk_size=6, vo_size=6, use_query_bias=True, key=key
                ),
                "mlp": eqx.nn.MLP(8, 8, 12, 1, activation=jax.nn.gelu, key=key),
                "head": eqx.nn.Linear(8, 4, use_bias=False, key=key),
            }

        def forward(m, ids):
            x = jax.vmap(m["embed"])(ids)
            y = jax.vmap(m["norms"][0])(x)
            x = x + m["attention"](y, y, y)
            x = x + jax.vmap(m["mlp"])(jax.vmap(m["norms"][1])(x))
            return m["head"](m["norms"][2](x[0]))

        fn, variables = in_equinox(build, forward)
        assert widths(check(fn, variables, WORDS)) == {
            "attention/query_proj/weight": "3/6",
            "attention/value_proj/weight": "3/6",
            "attention/output_proj/weight": "4/8",
            "mlp/layers/0/weight": "6/12",
        }

    def test_running_statistics(self):
        def build(key):
            one, two = jax.random.split(key)
            return {
                "conv": eqx.nn.Conv1d(7, 8, 3, padding=1, key=one),
                "norm": eqx.nn.BatchNorm(8, "batch", mode="ema", inference=True),
                "head": eqx.nn.Linear(8, 4, key=two),
            }

        made = eqx.filter_eval_shape(eqx.nn.make_with_state(build), jax.random.key(0))
        arrays, static = eqx.partition(made[0], lambda x: isinstance(x, jax.ShapeDtypeStruct))

        def fn(v, x):
            model, state = eqx.combine(v["model"], static), v["state"]

            def one(x):
                y, _ = model["norm"](model["conv"](x), state)
                return model["head"](jax.nn.relu(y).mean(1))

            return jax.vmap(one, axis_name="batch")(x)

        x = TOKENS.swapaxes(1, 2)
        assert widths(check(fn, filled({"model": arrays, "state": made[1]}), x)) == {
            "model/conv/weight": "4/8"
        }


class TestNnx:
    def test_convolutions_and_norms(self):
        class Network(nnx.Module):
            def __init__(self, rngs):
                self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
                self.norm = nnx.BatchNorm(8, rngs=rngs)
                self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
                self.groups = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
                self.up = nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=rngs)
                self.head = nnx.Linear(6, 4, rngs=rngs)

            def __call__(self, x):
                x = nnx.relu(self.norm(self.stem(x)))
                x = x + nnx.relu(self.groups(self.depthwise(x)))
                return self.head(nnx.relu(self.up(x)).mean((1, 2)))

        fn, variables = in_nnx(Network)
        shrunk = check(fn, variables, IMAGE)
        assert widths(shrunk) == {"stem": "2/4", "up": "3/6"}
        assert shrunk.variables["batch_stats"]["norm"]["mean"].shape == (4,)

    def test_transformer(self):
        class Network(nnx.Module):
            def __init__(self, rngs):
                self.embed = nnx.Embed(7, 8, rngs=rngs)
                self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)])
                self.attention = nnx.MultiHeadAttention(
                    num_heads=2, in_features=8, qkv_features=12, decode=False, rngs=rngs
                )
                self.up = nnx.Linear(8, 12, rngs=rngs)
                self.down = nnx.Linear(12, 8, rngs=rngs)

            def __call__(self, ids):
                x = self.embed(ids)
                x = x + self.attention(self.norms[0](x))
                x = x + self.down(nnx.swish(self.up(self.norms[1](x))))
                return self.embed.attend(x)

        fn, variables = in_nnx(Network)
        assert widths(check(fn, variables, WORDS)) == {
            "attention/query": "1/2",
            "attention/query/kernel#1": "3/6",
            "attention/value": "3/6",
            "attention/out": "4/8",
            "up": "6/12",
        }


class TestByHand:
    def test_kernels_of_pytorch(self):
        def fn(v, x):
            for weight, bias, stride in zip(v["weights"], v["biases"], (1, 2), strict=True):
                x = jax.lax.conv_general_dilated(
                    x, weight, (stride, stride), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
                )
                x = jax.nn.relu(x + bias.reshape(1, -1, 1, 1))
            return x.reshape(x.shape[0], -1) @ v["out"].T

        shapes = {
            "weights": [(8, 3, 3, 3), (6, 8, 3, 3)],
            "biases": [(8,), (6,)],
            "out": (4, 54),
        }
        variables = drawn(shapes)
        x = IMAGE.transpose(0, 3, 1, 2)
        shrunk = check(fn, variables, x)
        assert widths(shrunk) == {"weights/0": "4/8", "weights/1": "3/6"}

    def test_a_kernel_and_its_transpose(self):
        def fn(v, x):
            code = jax.nn.relu(x @ v["kernel"] + v["bias"][None, None])
            return code @ v["kernel"].T

        variables = drawn({"kernel": (7, 8), "bias": (8,)})
        assert widths(check(fn, variables, TOKENS)) == {"kernel": "4/8"}

    def test_attention_by_einsum(self):
        def fn(v, x):
            q, k, u = jnp.einsum("btc,schd->sbthd", x, v["qkv"])
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            return jnp.einsum("bhqk,bkhd,hdc->bqc", weights, u, v["out"])

        variables = drawn({"qkv": (3, 7, 2, 6), "out": (2, 6, 4)})
        assert widths(check(fn, variables, TOKENS)) == {"qkv": "1/2", "qkv#1": "3/6"}

    def test_a_recurrence_written_out(self):
        def fn(v, x):
            state = jnp.zeros((x.shape[0], 8), x.dtype)
            for t in range(x.shape[1]):
                both = jnp.concatenate([x[:, t], state], axis=-1)
                gate = jax.nn.sigmoid(both @ v["gate"])
                state = gate * state + (1 - gate) * jnp.tanh(both @ v["new"])
            return state @ v["out"]

        variables = drawn({"gate": (15, 8), "new": (15, 8), "out": (8, 4)})
        assert widths(check(fn, variables, TOKENS)) == {"gate": "4/8"}

    def test_a_parallel_map_over_members(self):
        """An ensemble under vmap: the members are one kernel each, and are cut alike."""

        def fn(v, x):
            member = lambda a, b: jax.nn.relu(x @ a) @ b  # noqa: E731
            return jax.vmap(member)(v["a"], v["b"]).mean(0)

        variables = drawn({"a": (3, 7, 8), "b": (3, 8, 4)})
        assert widths(check(fn, variables, TOKENS)) == {"a": "2/3", "a#1": "4/8"}
