"""`keep_largest` against a stable sort."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from compressjax.pruning.selection import keep_largest, ranks_of

# A few shapes only, so that few programs are compiled.
_SHAPES = [(7,), (3, 4), (2, 3, 2)]


def _oracle(parts: list[np.ndarray], count: int) -> list[np.ndarray]:
    flat = np.concatenate([part.ravel() for part in parts]).astype(np.int64)
    keep = np.zeros(flat.size, bool)
    keep[np.argsort(-flat, kind="stable")[:count]] = True
    keep &= flat > 0
    cuts = np.cumsum([part.size for part in parts])[:-1]
    return [
        mask.reshape(part.shape) for mask, part in zip(np.split(keep, cuts), parts, strict=True)
    ]


_compiled = jax.jit(keep_largest)


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.data(), st.sampled_from([3, 2**32 - 1]))
def test_keeps_the_first_of_the_largest(data: st.DataObject, top: int) -> None:
    chosen = data.draw(st.sampled_from([_SHAPES[:1], _SHAPES[1:], _SHAPES]))
    parts = []
    for shape in chosen:
        size = int(np.prod(shape))
        values = data.draw(st.lists(st.integers(0, top), min_size=size, max_size=size))
        parts.append(np.array(values, np.uint32).reshape(shape))
    count = data.draw(st.integers(0, sum(part.size for part in parts) + 1))
    found = _compiled([jnp.asarray(part) for part in parts], jnp.int32(count))
    for mask, expected in zip(found, _oracle(parts, count), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_exact_count_on_a_large_array_with_few_values() -> None:
    values = np.random.default_rng(0).integers(1, 4, 300_000).astype(np.uint32)
    for count in (0, 1, 123_457, 299_999, 300_000):
        (mask,) = keep_largest([jnp.asarray(values)], jnp.int32(count))
        assert int(mask.sum()) == count
        np.testing.assert_array_equal(mask, _oracle([values], count)[0])


def test_ranks_made_in_every_pass_are_not_kept() -> None:
    rng = np.random.default_rng(0)
    # Rounded, so that there are ties to break.
    shapes = [(3, 3, 16, 512), (1024, 128), (70_000,), (), (0, 4)]
    leaves = [np.float32(rng.normal(size=shape).round(2)) for shape in shapes]
    alive = [rng.random(shape) < 0.9 for shape in shapes]

    def select(data: tuple[list[jax.Array], list[jax.Array]], count: jax.Array) -> list[jax.Array]:
        def make(data: tuple[list[jax.Array], list[jax.Array]]) -> list[jax.Array]:
            pairs = zip(*data, strict=True)
            return [jnp.where(a, ranks_of(jnp.abs(x)), jnp.uint32(0)) for x, a in pairs]

        return keep_largest(data, count, make)

    data = jax.tree.map(jnp.asarray, (leaves, alive))
    program = jax.jit(select).lower(data, jnp.int32(0)).compile()
    ranks = [
        np.where(a, np.abs(x).view(np.uint32).astype(np.int64) + 1, 0)
        for x, a in zip(leaves, alive, strict=True)
    ]
    for count in (0, 50_001, 10**6):
        for mask, expected in zip(program(data, count), _oracle(ranks, count), strict=True):
            np.testing.assert_array_equal(mask, expected)
    if jax.default_backend() == "cpu":
        weights = sum(4 * leaf.size for leaf in leaves)
        assert program.memory_analysis().temp_size_in_bytes < 0.05 * weights


def test_keeps_nothing_of_nothing() -> None:
    assert keep_largest([], 3) == []


_floats = st.floats(width=32, allow_nan=False)


@hypothesis.given(_floats, _floats)
def test_ranks_have_the_order_of_scores(a: float, b: float) -> None:
    first, second = (int(rank) for rank in ranks_of(jnp.array([a, b], jnp.float32)))
    assert (first < second) == (np.float32(a) < np.float32(b))
    assert (first == second) == (np.float32(a) == np.float32(b))


def test_ranks_of_half_precision_and_nan() -> None:
    scores = jnp.array([1.0, float("inf"), float("nan"), -float("nan")], jnp.bfloat16)
    one, infinity, nan, minus_nan = (int(rank) for rank in ranks_of(scores))
    assert one < infinity < nan == minus_nan


def test_sparse_selection_does_not_sort() -> None:
    text = jax.jit(keep_largest).lower([jnp.zeros(64, jnp.uint32)], jnp.int32(3)).as_text()
    for operation in ("sort", "top_k", "gather", "scatter"):
        assert operation not in text
