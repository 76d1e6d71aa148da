"""How many channels each group keeps: per group or globally, rounded, and never none."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax import slimming
from tests.support.topologies import IMAGE, inception, linen, residual, shuffled

SCORES = st.lists(st.integers(0, 20), min_size=1, max_size=12).map(lambda x: np.array(x, float))


@hypothesis.given(scores=st.lists(SCORES, min_size=1, max_size=4), ratio=st.floats(0.01, 0.99))
def test_global_ranking_keeps_the_best_of_all(scores, ratio):
    scores = {str(i): x for i, x in enumerate(scores)}
    found = slimming.global_().wanted(scores, dict.fromkeys(scores, ratio))
    total = sum(map(len, scores.values()))
    assert sum(found.values()) == total - round(ratio * total)
    lost = [np.sort(x)[: len(x) - int(found[name])] for name, x in scores.items()]
    kept = [np.sort(x)[len(x) - int(found[name]) :] for name, x in scores.items()]
    assert max([*np.concatenate(lost), -1]) <= min([*np.concatenate(kept), 99])


def test_global_ranking_pools_groups_of_one_ratio():
    scores = {"a": np.array([1.0, 9.0]), "b": np.array([5.0, 6.0]), "c": np.array([0.0, 0.0])}
    found = slimming.global_().wanted(scores, {"a": 0.25, "b": 0.25, "c": 0.0})
    assert found == {"a": 1.0, "b": 2.0, "c": 2.0}
    by_group = slimming.global_(lambda x: x / x.mean()).wanted(scores, {"a": 0.5, "b": 0.5, "c": 0})
    assert by_group == {"a": 1.0, "b": 1.0, "c": 2.0}


def test_a_global_cut_takes_what_matters_least():
    fn, variables = linen(residual)
    kernel = variables["params"]["Conv_1"]["kernel"]
    variables["params"]["Conv_1"]["kernel"] = kernel * np.where(np.arange(8) < 5, 1e-3, 1.0).astype(
        np.float32
    )
    shrunk = slimming.shrink(
        fn, variables, IMAGE, ratio=5 / 64, ranking=slimming.global_(), round_to=1
    )
    assert shrunk.kept["params/Conv_1/kernel"] == [5, 6, 7]
    cut = {name: old - new for name, (old, new) in shrunk.report.groups.items()}
    assert sum(cut.values()) == cut["params/Conv_1/kernel"] == 5


@pytest.mark.parametrize("body", [residual, inception, shuffled])
@pytest.mark.parametrize("ranking", [slimming.per_group(), slimming.global_()])
def test_nothing_becomes_empty_whatever_the_ratio(body, ranking):
    fn, variables = linen(body)
    for round_to in (1, 2, 8):
        shrunk = slimming.shrink(
            fn, variables, IMAGE, ratio=0.999, ranking=ranking, round_to=round_to
        )
        for name, (old, new) in shrunk.report.groups.items():
            assert new >= 1, name
            assert len(shrunk.kept[name]) >= min(round_to, len(shrunk.kept[name]) * old / new)
        assert shrunk.apply(shrunk.variables, IMAGE).shape == (2, 4)
