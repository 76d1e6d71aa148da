"""Importance from the weights alone, against NumPy written from the papers."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import compressjax as cj
from compressjax import slimming
from compressjax.graph.channels import Group, Member
from compressjax.slimming.importance.base import combined, filter_norms, filters
from tests.support import importance_oracles as oracles
from tests.support.topologies import IMAGE, linen, plain, preactivation, residual

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
KERNELS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.floats(-3, 3, width=16),
)


def group(*members, size):
    return Group("k", members, np.arange(size))


def one(kernel):
    size = kernel.shape[-1]
    return group(Member("k", kernel.ndim - 1, np.arange(size), makes=True, kernel=True), size=size)


METHODS = {
    "l1": (slimming.l1(), oracles.l1),
    "l2": (slimming.l2(), oracles.l2),
    "lamp": (slimming.lamp(), oracles.lamp),
    "geometric_median": (slimming.geometric_median(), oracles.geometric_median),
}


@pytest.mark.parametrize("name", METHODS)
@hypothesis.given(kernel=KERNELS)
def test_one_kernel_scores_what_the_paper_says(name, kernel):
    importance, oracle = METHODS[name]
    hypothesis.assume(
        name != "lamp"
        or all(np.square(kernel, dtype=float).sum(axis=tuple(range(kernel.ndim - 1))))
    )
    scores = importance(one(kernel), {"k": kernel})
    assert scores.shape == (kernel.shape[-1],)
    np.testing.assert_allclose(scores, oracle(kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*METHODS, "random"])
def test_order_does_not_matter_and_scale_changes_no_ranking(name):
    importance = METHODS[name][0] if name in METHODS else slimming.random(3)
    scores = importance(one(KERNEL), {"k": KERNEL})
    order = np.array([3, 1, 5, 0, 2, 4])
    if name != "random":
        np.testing.assert_allclose(
            importance(one(KERNEL), {"k": KERNEL[..., order]}), scores[order], rtol=1e-5
        )
    scaled = importance(one(KERNEL), {"k": 7 * KERNEL})
    assert np.argsort(scaled).tolist() == np.argsort(scores).tolist()


@pytest.mark.parametrize("combine", [np.sum, np.mean, np.max])
def test_members_are_combined_as_asked_for(combine):
    other = np.array([[1.0], [100.0], [10.0], [1000.0]], np.float32)
    members = (
        Member("k", 3, np.array([0, 1, 2, 0, 1, 2]), makes=True, kernel=True),
        Member("other", 0, np.array([2, -1, 0, 1]), makes=True, kernel=True),
    )
    scores = slimming.l1(combine)(group(*members, size=3), {"k": KERNEL, "other": other})
    own = np.abs(KERNEL).sum((0, 1, 2))
    expected = combine(np.stack([own[:3] + own[3:], [10, 1000, 1]]), axis=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_readers_do_not_count_where_kernels_make_the_channels():
    members = (
        Member("k", 3, np.arange(6), makes=True, kernel=True),
        Member("bias", 0, np.arange(6), makes=True, kernel=False),
        Member("reader", 0, np.arange(6), makes=False, kernel=False),
    )
    large = np.full((6, 2), 1e6, np.float32)
    leaves = {"k": KERNEL, "bias": large[:, 0], "reader": large}
    scores = slimming.l1()(group(*members, size=6), leaves)
    np.testing.assert_allclose(scores, np.abs(KERNEL).sum((0, 1, 2)), rtol=1e-5)


def test_without_a_kernel_its_readers_count_and_then_what_makes_it():
    token = Member("token", 1, np.array([1, 0]), makes=True, kernel=False)
    reader = Member("reader", 0, np.arange(2), makes=False, kernel=False)
    leaves = {"token": np.array([[3.0, -5.0]]), "reader": np.array([[7.0], [8.0]])}
    np.testing.assert_allclose(slimming.l1()(group(token, size=2), leaves), [5.0, 3.0])
    np.testing.assert_allclose(slimming.l1()(group(token, reader, size=2), leaves), [7.0, 8.0])


def test_filters_are_laid_out_by_channel():
    member = Member("k", 0, np.array([1, -1, 0, 1]), makes=True, kernel=True)
    rows = filters(np.arange(8).reshape(4, 2), member, 2)
    assert rows.tolist() == [[4, 5, 0, 0], [0, 1, 6, 7]]


def test_half_precision_is_summed_in_float32():
    weights = jnp.full((4096, 2), 0.01, jnp.bfloat16)
    exact = 4096 * float(weights[0, 0])
    np.testing.assert_allclose(filter_norms(weights, 1, 1), [exact, exact], rtol=1e-5)


def test_scales_of_batch_norm():
    fn, variables = linen(residual)
    by_name = {g.name: g for g in slimming.find_groups(fn, variables, IMAGE)}
    leaves = cj.tree.paths(variables)
    importance = slimming.batch_norm_scale()
    alone = importance(by_name["params/Conv_1/kernel"], leaves)
    np.testing.assert_allclose(alone, np.abs(variables["params"]["BatchNorm_1"]["scale"]))
    stream = importance(by_name["params/Conv_0/kernel"], leaves)
    scales = [variables["params"][f"BatchNorm_{i}"]["scale"] for i in (0, 2)]
    np.testing.assert_allclose(stream, np.abs(scales).sum(0), rtol=1e-6)


def test_a_norm_cut_apart_from_its_stream_is_ranked_by_its_own_scale():
    fn, variables = linen(preactivation)
    for importance in (slimming.batch_norm_scale(), slimming.l1()):
        shrunk = slimming.shrink(
            fn, variables, IMAGE, importance=importance, gather=True, round_to=1
        )
        assert len(shrunk.kept["params/BatchNorm_0/scale"]) == 4


def test_a_copy_goes_first_by_the_geometric_median_and_not_by_its_size():
    """He et al. (2019): what others can stand in for is redundant, however large it is."""
    kernel = np.random.default_rng(2).choice([-1.0, 1.0], size=(3, 3, 4, 8))
    kernel[..., 5] *= 0.9
    kernel[..., 2] *= 1.15
    kernel[..., 6] = kernel[..., 2]
    scores = slimming.geometric_median()(one(kernel), {"k": kernel})
    norms = slimming.l1()(one(kernel), {"k": kernel})
    np.testing.assert_allclose(scores[2], scores[6])
    assert set(np.argsort(scores)[:2]) == {2, 6} == set(np.argsort(norms)[-2:])
    assert np.argmin(norms) == 5


def test_random_scores_differ_between_groups_and_seeds():
    a, b = (Group(name, (), np.arange(50)) for name in "ab")
    found = slimming.random(0)
    assert not np.array_equal(found(a, {}), found(b, {}))
    assert not np.array_equal(found(a, {}), slimming.random(1)(a, {}))
    assert 0.3 < found(a, {}).mean() < 0.7


def test_normalisers():
    scores = np.array([1.0, 3.0, 0.0])
    assert slimming.mean_normalised(scores).mean() == pytest.approx(1)
    assert slimming.max_normalised(scores).max() == 1
    assert np.linalg.norm(slimming.norm_normalised(scores)) == pytest.approx(1)
    for normalise in (slimming.mean_normalised, slimming.max_normalised, slimming.norm_normalised):
        np.testing.assert_array_equal(normalise(np.zeros(3)), np.zeros(3))
        np.testing.assert_allclose(normalise(5 * scores), normalise(scores))


def test_the_geometric_median_is_among_the_channels_that_a_member_has():
    members = (
        Member("r", 0, np.array([0, 1, -1]), makes=False, kernel=False),
        Member("s", 0, np.array([-1, 0, 1, 2]), makes=False, kernel=False),
    )
    leaves = {"r": np.array([[100.0], [101.0], [7.0]]), "s": np.array([[7.0], [1.0], [2.0], [4.0]])}
    scores = slimming.geometric_median()(group(*members, size=3), leaves)
    np.testing.assert_allclose(scores, [1 + (1 + 3), 1 + (1 + 2), 3 + 2])


@pytest.mark.parametrize("name", METHODS)
def test_what_does_not_fit_is_named(name):
    importance = METHODS[name][0]
    with pytest.raises(ValueError, match="group 'k': nothing is known of k; found other"):
        importance(one(KERNEL), {"other": KERNEL})
    with pytest.raises(ValueError, match=r"k has 6 positions along axis 3, .* \(3, 3, 4, 5\)"):
        importance(one(KERNEL), {"k": KERNEL[..., :5]})
    with pytest.raises(ValueError, match=r"k has 6 positions along axis 3, .* shape \(6,\)"):
        importance(one(KERNEL), {"k": KERNEL[0, 0, 0]})
    broken = KERNEL.copy()
    broken[0, 0, 0, 4] = np.nan
    with pytest.raises(ValueError, match=r"group 'k': channels \[.*\] have a score that is not a"):
        importance(one(KERNEL), {"k": broken})


def test_combine_has_to_leave_the_channels():
    with pytest.raises(ValueError, match=r"group 'k': combine gave shape \(\), expected \(6,\)"):
        slimming.l1(lambda scores, axis: np.sum(scores))(one(KERNEL), {"k": KERNEL})


def test_errors_name_the_group_and_its_members():
    fn, variables = linen(plain)
    (first, *_) = slimming.find_groups(fn, variables, IMAGE)
    with pytest.raises(ValueError, match=r"group 'params/Conv_0/kernel': none of its .*'\*gamma'"):
        slimming.batch_norm_scale(select="*gamma")(first, cj.tree.paths(variables))
    found = slimming.batch_norm_scale(select="*gamma", otherwise=slimming.l1())
    assert found(first, cj.tree.paths(variables)).shape == (8,)
    with pytest.raises(ValueError, match="nothing is known of params/Conv_0/kernel; found x"):
        slimming.l1()(first, {"x": KERNEL})
    with pytest.raises(ValueError, match=r"Conv_0/kernel has 8 positions along axis 3, its scor"):
        combined(first, cj.tree.paths(variables), lambda x, m: np.zeros(6))
