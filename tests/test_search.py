"""Searches keep the last model that met the floor, stop at the first that did not, and go on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import models, search, tree

LEVELS = (0.25, 0.5, 0.75)


def toy(**changed):
    """A search whose model is a number and whose score is what is left of it."""
    given = {
        "model": 1.0,
        "compress": lambda model, level: 1.0 - level,
        "tune": lambda model, round: model,
        "evaluate": lambda model: model,
        "levels": LEVELS,
        "floor": 0.5,
    } | changed
    return cj.compress_until(given.pop("model"), **given)


def test_it_stops_at_the_first_miss_and_keeps_the_last_that_met_the_floor():
    found = toy(levels=(0.25, 0.5, 0.6, 0.7))
    assert found[:4] == (0.5, 0.5, 0.5, 0.4)
    assert found.history == ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.6, 0.4))
    assert found.rounds == 3


def test_it_stops_at_the_last_level():
    found = toy(floor=0.0)
    assert (found.best, found.level, found.model, found.rounds) == (0.25, 0.75, 0.25, 3)


def test_without_any_success_the_start_is_the_best():
    found = toy(floor=0.9)
    assert (found.best, found.level, found.score, found.rounds) == (1.0, 0.0, 1.0, 1)


def test_a_score_that_is_no_number_is_a_miss():
    found = toy(evaluate=lambda model: model if model > 0.6 else float("nan"))
    assert (found.best, found.level, found.rounds) == (0.75, 0.25, 2)


def test_every_round_goes_on_from_the_tuned_model_of_the_one_before():
    seen = []

    def compress(model, level):
        seen.append(("compress", model, level))
        return f"{model}-{level}"

    def tune(model, round):
        seen.append(("tune", model, round))
        return f"{model}+{round}"

    toy(model="m", compress=compress, tune=tune, evaluate=lambda model: 1.0, levels=(0.1, 0.2))
    assert seen == [
        ("compress", "m", 0.1),
        ("tune", "m-0.1", 1),
        ("compress", "m-0.1+1", 0.2),
        ("tune", "m-0.1+1-0.2", 2),
    ]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_search_goes_on_where_it_was(rounds):
    saved = []
    whole = toy(levels=(0.25, 0.5, 0.6, 0.7), save=saved.append)
    assert [found.rounds for found in saved] == [1, 2, 3] and saved[-1] == whole
    calls = []

    def compress(model, level):
        calls.append(level)
        return 1.0 - level

    resumed = toy(levels=(0.25, 0.5, 0.6, 0.7), compress=compress, found=saved[rounds - 1])
    assert resumed == whole
    assert calls == [0.25, 0.5, 0.6][rounds:]


def test_a_search_goes_on_to_further_levels():
    assert toy(found=toy(levels=(0.25,))) == toy()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": ()}, "levels is empty"),
        ({"levels": (0.5, 0.25)}, r"levels must rise, found 0.25 after 0.5 at levels\[1\]"),
        ({"levels": (0.5, 1.0)}, r"levels\[1\] must be in \[0, 1\), found 1.0"),
        ({"levels": (-0.5,)}, r"levels\[0\] must be in \[0, 1\), found -0.5"),
        ({"floor": float("nan")}, "floor is NaN"),
        ({"model": 0.25}, "scores 0.25, under the floor of 0.5"),
        ({"evaluate": lambda model: float("nan")}, "scores nan, under the floor of 0.5"),
        ({"found": toy(levels=(0.2, 0.4))}, r"went through \[0.2, 0.4\], .* \[0.25, 0.5\]"),
        ({"found": toy(floor=0.0), "levels": (0.25,)}, r"\[0.25\]; go on with the levels"),
        ({"found": toy(floor=0.0), "floor": 0.6}, "does not fit floor=0.6: its scores are"),
        ({"found": toy(floor=0.6), "floor": 0.1}, "the best it kept is that of level 0.25"),
        ({"found": toy(), "floor": 2.0}, "does not fit floor=2.0"),
    ],
)
def test_bad_input_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        toy(**changed)


# A regression that a narrow hidden layer cannot hold, as masks and as channels.


@dataclasses.dataclass(frozen=True)
class Problem:
    x: jax.Array
    y: jax.Array

    def apply(self, variables, x):
        hidden = jax.nn.relu(x @ variables["in"]["kernel"] + variables["in"]["bias"].reshape(1, -1))
        return hidden @ variables["out"]["kernel"]

    def loss(self, apply, variables):
        return jnp.mean((apply(variables, self.x) - self.y) ** 2)

    def trained(self, apply, variables, steps=80):
        @jax.jit
        def run(variables):
            def step(_, variables):
                gradients = jax.grad(lambda v: self.loss(apply, v))(variables)
                return jax.tree.map(lambda w, g: w - 0.1 * g, variables, gradients)

            return jax.lax.fori_loop(0, steps, step, variables)

        return run(variables)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    return Problem(x, jnp.stack([jnp.abs(x[:, 0]), jnp.maximum(x[:, 1], x[:, 2])], 1))


@pytest.fixture(scope="module")
def dense(problem):
    rng = np.random.default_rng(1)
    variables = {
        "in": {"kernel": rng.normal(size=(4, 16)) / 2, "bias": rng.normal(size=16) / 2},
        "out": {"kernel": rng.normal(size=(16, 2)) / 4},
    }
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)
    return problem.trained(problem.apply, variables, steps=600)


def masks(problem, dense):
    def tune(model, round):
        def apply(variables, x):
            return problem.apply(cj.apply_masks(variables, model.keep), x)

        return model._replace(variables=problem.trained(apply, model.variables))

    return search.Masked(dense, None), {
        "compress": search.by_masks(budget=cj.pruning.global_()),
        "tune": tune,
        "evaluate": lambda model: -problem.loss(problem.apply, model.variables),
    }


def channels(problem, dense):
    def function(model):
        return cj.shrink(problem.apply, dense, problem.x, kept=model.kept).apply

    return search.Cut(dense, {}), {
        "compress": search.by_channels(problem.apply, dense, problem.x, round_to=1),
        "tune": lambda model, round: model._replace(
            variables=problem.trained(function(model), model.variables)
        ),
        "evaluate": lambda model: -problem.loss(function(model), model.variables),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.mark.parametrize("kind", [masks, channels])
def test_masks_and_channels_alike(kind, problem, dense):
    model, functions = kind(problem, dense)
    levels = (0.25, 0.5, 0.75, 0.9)
    floor = -0.02
    saved = []
    whole = cj.compress_until(model, **functions, levels=levels, floor=floor, save=saved.append)
    assert 0 < whole.level < levels[whole.rounds - 1]
    assert whole.score >= floor > whole.history[-1].score
    assert functions["evaluate"](whole.best) == whole.score
    assert tuple(level for level, _ in whole.history) == (0.0, *levels)[: whole.rounds + 1]
    for found in saved:
        resumed = cj.compress_until(model, **functions, levels=levels, floor=floor, found=found)
        same(resumed, whole)
    kernels = [tree.paths(found.model.variables)["in/kernel"] for found in saved]
    sizes = [int(np.count_nonzero(kernel)) for kernel in kernels]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] < 64


def test_what_was_pruned_stays_pruned_whatever_the_scores_say(problem, dense):
    """Scores that turn round: what goes first now would have been kept last before."""
    compress = search.by_masks(
        values=lambda variables: jax.tree.map(
            lambda leaf: jnp.where(jnp.any(leaf == 0), -jnp.abs(leaf), jnp.abs(leaf)), variables
        )
    )
    first = compress(search.Masked(dense, None), 0.5)
    second = compress(first, 0.75)
    for path, keep in tree.paths(second.keep).items():
        before = tree.paths(first.keep)[path]
        assert int(before.sum()) == before.size // 2 and int(keep.sum()) == keep.size // 4
        assert not bool(jnp.any(keep & ~before))
        np.testing.assert_array_equal(tree.paths(second.variables)[path] != 0, keep)
    assert second.keep["in"]["bias"] is None


def test_channels_count_from_the_whole_model_and_stay_cut():
    model = models.ResNet8(num_classes=10)
    x = jnp.ones((1, 16, 16, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.random(leaf.shape, np.float32),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    compress = search.by_channels(model.apply, variables, x, round_to=4, protect="**/Dense_0/*")
    first = compress(search.Cut(variables, {}), 0.25)
    # Tuning turns the order of the channels round.
    turned = first._replace(
        variables=tree.map_with_path(
            lambda path, leaf: 1 / (leaf + 0.1) if path.endswith("kernel") else leaf,
            first.variables,
        )
    )
    second = compress(turned, 0.5)
    goal = cj.shrink(model.apply, variables, x, ratio=0.5, round_to=4, protect="**/Dense_0/*")
    assert {name: len(kept) for name, kept in second.kept.items()} == {
        name: len(kept) for name, kept in goal.kept.items()
    }
    assert all(set(kept) <= set(first.kept[name]) for name, kept in second.kept.items())
    assert any(list(kept) != goal.kept[name] for name, kept in second.kept.items())
    again = cj.shrink(model.apply, variables, x, kept=second.kept, protect="**/Dense_0/*")
    assert jax.tree.map(jnp.shape, again.variables) == jax.tree.map(jnp.shape, second.variables)
    assert jax.eval_shape(again.apply, second.variables, x).shape == (1, 10)


@pytest.mark.parametrize("level", [1.0, -0.1])
def test_the_ways_to_compress_refuse_what_is_no_sparsity(level, problem, dense):
    with pytest.raises(ValueError, match=f"level must be in .* found {level}"):
        search.by_masks()(search.Masked(dense, None), level)
    compress = search.by_channels(problem.apply, dense, problem.x)
    with pytest.raises(ValueError, match=f"is {level}"):
        compress(search.Cut(dense, {}), level)


def test_masks_refuse_what_cannot_be_pruned(dense):
    with pytest.raises(ValueError, match="matches none of the 3 paths"):
        search.by_masks(select="**/weights")(search.Masked(dense, None), 0.5)
    with pytest.raises(TypeError, match="kernel has dtype int32"):
        search.by_masks()(search.Masked({"kernel": jnp.arange(3)}, None), 0.5)
