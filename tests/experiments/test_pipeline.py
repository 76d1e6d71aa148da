"""A stage runs when it must, and only then."""

import json

import ml_collections
import pytest

from experiments import pipeline
from experiments.pipeline import Stage


class Recorder:
    """Stages a, b (reads a), c (reads a), d (reads b and c), and which of them ran."""

    def __init__(self):
        self.ran = []
        self.fail_in = None

    def stages(self):
        def stage(name, settings, inputs):
            def run(config, directory, results):
                assert set(results) == set(inputs)
                self.ran.append(name)
                (directory / "work").mkdir(exist_ok=True)
                (directory / "work" / "file").write_text("x")
                if self.fail_in == name:
                    raise KeyboardInterrupt
                return {"sum": sum(config[s].value for s in settings)}

            return Stage(name, run, settings, inputs)

        return [
            stage("a", ("one",), ()),
            stage("b", ("two",), ("a",)),
            stage("c", ("three",), ("a",)),
            stage("d", ("three",), ("b", "c")),
        ]


@pytest.fixture
def config():
    return ml_collections.ConfigDict({k: {"value": 1} for k in ("one", "two", "three", "other")})


@pytest.fixture
def recorder():
    return Recorder()


def run(recorder, config, workdir):
    recorder.ran.clear()
    results = pipeline.run_stages(recorder.stages(), config, workdir)
    return recorder.ran.copy(), results


def test_finished_stages_are_skipped_and_give_the_same_results(tmp_path, recorder, config):
    ran, first = run(recorder, config, tmp_path)
    assert ran == ["a", "b", "c", "d"]
    ran, second = run(recorder, config, tmp_path)
    assert ran == []
    assert first == second


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("one", ["a", "b", "c", "d"]),
        ("two", ["b", "d"]),
        ("three", ["c", "d"]),
        ("other", []),
    ],
)
def test_a_change_redoes_exactly_what_depends_on_it(tmp_path, recorder, config, changed, expected):
    run(recorder, config, tmp_path)
    config[changed].value = 2
    assert run(recorder, config, tmp_path)[0] == expected
    config[changed].value = 1
    assert run(recorder, config, tmp_path)[0] == expected


def test_a_half_finished_stage_finds_its_files_again(tmp_path, recorder, config):
    recorder.fail_in = "b"
    with pytest.raises(KeyboardInterrupt):
        run(recorder, config, tmp_path)
    recorder.fail_in = None
    (tmp_path / "b" / "work" / "checkpoint").write_text("half")
    assert run(recorder, config, tmp_path)[0] == ["b", "c", "d"]
    assert (tmp_path / "b" / "work" / "checkpoint").read_text() == "half"


def test_a_half_finished_stage_of_other_settings_starts_over(tmp_path, recorder, config):
    recorder.fail_in = "b"
    with pytest.raises(KeyboardInterrupt):
        run(recorder, config, tmp_path)
    recorder.fail_in = None
    (tmp_path / "b" / "work" / "checkpoint").write_text("half")
    config.two.value = 5
    ran, results = run(recorder, config, tmp_path)
    assert ran == ["b", "c", "d"]
    assert not (tmp_path / "b" / "work" / "checkpoint").exists()
    assert results["b"].figures == {"sum": 5}


def test_a_stage_done_again_with_other_figures_invalidates_the_next(tmp_path, config):
    """Figures hold checksums of what was saved, so other bits are other inputs."""
    bits = iter([1, 2])
    ran = []
    stages = [
        Stage("first", lambda *_: {"checksum": next(bits)}, (), ()),
        Stage("second", lambda *_: ran.append(1) or {}, (), ("first",)),
    ]
    pipeline.run_stages(stages, config, tmp_path)
    (tmp_path / "first" / "result.json").unlink()
    pipeline.run_stages(stages, config, tmp_path)
    assert len(ran) == 2


def test_files_of_somebody_else_are_left_alone(tmp_path, recorder, config):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files that no stage wrote"):
        run(recorder, config, tmp_path)
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"


def test_a_damaged_result_is_named(tmp_path, recorder, config):
    run(recorder, config, tmp_path)
    (tmp_path / "c" / "result.json").write_text('{"fing')
    with pytest.raises(ValueError, match="c/result.json is damaged .* Delete .*c to do the stage"):
        run(recorder, config, tmp_path)


def test_results_are_on_disk_as_json(tmp_path, recorder, config):
    run(recorder, config, tmp_path)
    value = json.loads((tmp_path / "d" / "result.json").read_text())
    assert value["figures"] == {"sum": 1}
    assert value["seconds"] >= 0


def test_a_setting_without_a_fingerprint_is_refused(tmp_path):
    stage = Stage("a", lambda *_: {}, ("x",), ())
    with pytest.raises(TypeError, match="a config value of type set has no fingerprint"):
        pipeline.run_stages([stage], {"x": {1}}, tmp_path)
