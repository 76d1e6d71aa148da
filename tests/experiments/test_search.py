"""The search stage on real digits, in seconds: it keeps its promises and survives being killed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import app

from compressjax import training, tree
from experiments import fitting, networks, pipeline, run, search
from experiments.bench import sensitivity
from experiments.bench import trained as bench_trained
from experiments.configs import digits_search, digits_search_masks
from tests.experiments import tiny

CONFIGS = {"channels": digits_search, "masks": digits_search_masks}


def tiny_config(kind, directory):
    config = CONFIGS[kind].get_config()
    config.data.directory = str(directory)
    config.model = tiny.get_config().model
    config.train.update({"epochs": 6, "save_every": 6})
    config.search.update({"epochs": 2, "save_every": 1, "levels": (0.1, 0.25, 0.99), "drop": 0.3})
    if kind == "channels":
        config.search.options.round_to = 1
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, directory):
    """The dense network that all searches start from."""
    workdir = tmp_path_factory.mktemp("trained")
    config = tiny_config("masks", directory)
    return pipeline.run_stages(search.STAGES[:1], config, workdir)["train"]


@pytest.fixture(scope="module", params=list(CONFIGS))
def whole(request, tmp_path_factory, directory, trained):
    """A search from start to end; tests must leave its directory as it is."""
    workdir = tmp_path_factory.mktemp(request.param)
    shutil.copytree(trained.directory, workdir / "train")
    config = tiny_config(request.param, directory)
    reached = run.run(config, workdir, "the command")
    return request.param, config, workdir, reached


def test_it_stops_at_the_first_miss_and_reports_the_last_hit(whole, trained):
    kind, config, workdir, reached = whole
    value = json.loads((workdir / "search.json").read_text())
    figures = value["search"]
    assert value["reached"] == reached and value["provenance"]["command"] == "the command"
    assert (workdir / "search.png").read_bytes().startswith(b"\x89PNG")
    assert figures["floor"] == trained.figures["accuracy"] - config.search.drop
    levels, scores = zip(*figures["history"], strict=True)
    assert levels == (0.0, *config.search.levels)
    assert scores[0] == trained.figures["accuracy"]
    assert min(scores[:-1]) >= figures["floor"] > scores[-1]
    assert figures["level"] == levels[-2]
    assert figures["best"]["accuracy"] == scores[-2]
    dense, best = figures["dense"], figures["best"]
    if kind == "channels":
        assert best["macs"] < 0.7 * dense["macs"] and best["parameters"] < dense["parameters"]
    else:
        kernels = 9 * 8 + 9 * 8 * 16 + 16 * 10
        assert dense["parameters"] - best["nonzero"] >= kernels * figures["level"] - 1
        assert best["macs"] == dense["macs"]


def test_the_best_network_can_be_loaded_and_scores_what_was_said(whole, trained):
    kind, config, workdir, _ = whole
    figures = json.loads((workdir / "search.json").read_text())["search"]
    setup = fitting.set_up(config)
    dense = networks.load(trained.directory, setup.like)
    chosen = config.search.kind(setup.dense, dense, setup.data.example, **config.search.options)
    like = chosen.compress(chosen.start(dense), figures["level"])
    best = networks.load(workdir / "search", like)
    apply = chosen.network(best).apply
    assert fitting.scored(setup.data, apply, best.variables).accuracy == figures["best"]["accuracy"]
    if kind == "masks":
        for path, keep in tree.paths(best.keep).items():
            assert not np.any(np.asarray(tree.paths(best.variables)[path])[~np.asarray(keep)])


# Saves: two epochs and a finished round, three times, then the best model. The fourth is in the
# middle of a round, the ninth ends the round that missed.
def test_a_killed_search_goes_on_to_the_same_bits(whole, trained, tmp_path, monkeypatch):
    kind, config, workdir, _ = whole
    saves = {"masks": 4, "channels": 9}[kind]
    shutil.copytree(trained.directory, tmp_path / "train")
    save, steps = training.Checkpoints.save, []

    def saved_then_killed(self, step, state):
        save(self, step, state)
        steps.append((self.directory.relative_to(tmp_path), step))
        if len(steps) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Checkpoints, "save", saved_then_killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stages(search.STAGES, config, tmp_path)
    assert not (tmp_path / "search" / "result.json").exists()
    result = pipeline.run_stages(search.STAGES, config, tmp_path)["search"]
    expected = json.loads((workdir / "search" / "result.json").read_text())["figures"]
    assert result.figures == expected
    assert len(steps) == len(set(steps)) == 10


def test_tuning_with_masks_trains_what_is_kept_and_nothing_else(directory):
    config = tiny_config("masks", directory)
    setup = fitting.set_up(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), setup.like)
    kind = config.search.kind(setup.dense, variables, setup.data.example, **config.search.options)
    model = kind.compress(kind.start(variables), 0.5)
    forward = kind.network(model).forward

    def loss(params):
        logits, _ = forward({**variables, "params": params}, setup.data.example, jax.random.key(0))
        return (logits * np.arange(10.0, dtype=np.float32).reshape(1, 10)).sum()

    gradients = tree.paths(jax.jit(jax.grad(loss))(variables["params"]))
    for path, keep in tree.paths(model.keep["params"]).items():
        assert not np.any(np.asarray(gradients[path])[~np.asarray(keep)])
    assert np.any(np.asarray(gradients["Dense_0/kernel"]))


def test_the_benchmark_scans_kernels_in_the_order_in_which_they_run():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (30, 2, 2, 1)), jnp.uint8)

    def prepare(images):
        return images.astype(jnp.float32) / 128.0 - 1.0

    def apply(variables, x):
        hidden = jax.nn.relu(x.reshape(x.shape[0], 4) @ variables["second"]["kernel"])
        return hidden @ variables["first"]["kernel"]

    variables = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)},
        "second": {"kernel": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)},
    }
    labels = apply(variables, prepare(images)).argmax(-1)
    labels = jnp.where(jnp.arange(30) < 20, labels, -1)
    data = networks.Data(images, labels, images, labels, 3, lambda rng, x: x, prepare)
    found = sensitivity.scan(bench_trained.Trained(apply, variables, data), [0.0, 0.9], 25)
    assert list(found.scores) == ["second/kernel", "first/kernel"]
    assert found.dense == pytest.approx(20 / 25)
    for scores in found.scores.values():
        assert scores[0] == found.dense > scores[1]


def test_until_names_the_stages_that_there_are(directory, tmp_path):
    with pytest.raises(app.UsageError, match="no stage 'prune'; its stages are train, search"):
        run.run_until(tiny_config("masks", directory), tmp_path, "prune")
