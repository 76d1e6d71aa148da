"""Scores of channels, against NumPy written from the papers."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import slimming
from compressjax.graph.channels import Group, Member
from compressjax.slimming.importance import filter_norms, group_sum

KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)


def group(*members, size):
    return Group("k", members, np.arange(size))


@pytest.mark.parametrize(("importance", "order"), [(slimming.l1(), 1), (slimming.l2(), 2)])
def test_a_channel_scores_the_norm_of_its_filter(importance, order):
    member = Member("k", 3, np.arange(6), makes=True, kernel=True)
    scores = importance(group(member, size=6), {"k": KERNEL})
    filters = [KERNEL[..., i].reshape(-1).astype(np.float64) for i in range(6)]
    expected = [(np.abs(w) ** order).sum() ** (1 / order) for w in filters]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_tied_kernels_add_up_and_readers_do_not_count():
    pairs = np.array([0, 1, 2, 0, 1, 2])
    members = (
        Member("k", 3, pairs, makes=True, kernel=True),
        Member("other", 0, np.array([2, -1, 0, 1]), makes=True, kernel=True),
        Member("bias", 0, np.arange(3), makes=True, kernel=False),
        Member("reader", 0, np.arange(3), makes=False, kernel=False),
    )
    ones = np.full((3, 2), 1e6, np.float32)
    other = np.array([[1.0], [100.0], [10.0], [1000.0]], np.float32)
    leaves = {"k": KERNEL, "other": other, "bias": ones[:, 0], "reader": ones}
    scores = slimming.l1()(group(*members, size=3), leaves)
    own = np.abs(KERNEL).sum((0, 1, 2))
    np.testing.assert_allclose(scores, own[:3] + own[3:] + [10, 1000, 1], rtol=1e-5)


def test_without_a_kernel_what_makes_the_channels_counts():
    member = Member("token", 1, np.array([1, 0]), makes=True, kernel=False)
    scores = slimming.l1()(group(member, size=2), {"token": np.array([[3.0, -5.0]])})
    np.testing.assert_allclose(scores, [5.0, 3.0])


def test_half_precision_is_summed_in_float32():
    weights = jnp.full((4096, 2), 0.01, jnp.bfloat16)
    exact = 4096 * float(weights[0, 0])
    np.testing.assert_allclose(filter_norms(weights, 1, 1), [exact, exact], rtol=1e-5)


def test_group_sum_sees_only_the_group():
    member = Member("w", 0, np.array([-1, 0, -1]), makes=True, kernel=True)
    assert group_sum(group(member, size=1), {"w": np.array([9.0, 2.0, 9.0])}, lambda x, _: x) == 2
