"""The fuzzer without its guide: the same changes of the same files, judged as it judges them."""

import functools
import os
import signal
import subprocess
import sys

import pytest

from compressjax.export import flatbuffer, validate
from launch import fuzz


@functools.cache
def _seeds() -> dict[str, bytes]:
    return fuzz.seeds()


def test_the_first_files_are_sound_and_differ():
    assert len(set(_seeds().values())) == len(_seeds()) >= 5
    for data in _seeds().values():
        validate(data)
        assert len(data) <= fuzz.LARGEST_FILE


def test_changes_are_reproducible_and_reach_beyond_the_layout():
    data = _seeds()["int8"]
    changed = [fuzz.mutated(data, seed) for seed in range(40)]
    assert changed == [fuzz.mutated(data, seed) for seed in range(40)]
    assert len(set(changed)) > 20
    assert fuzz.mutated(b"no model", 1) == b"no model"
    accepted = 0
    for file in set(changed) - {data}:
        try:
            flatbuffer.read(file)
            accepted += 1
        except ValueError:
            continue
    assert 0 < accepted < len(set(changed))


@pytest.mark.parametrize("name", ["float", "int8", "int16", "dynamic", "sparse", "four_bits"])
def test_no_change_raises_another_error(name):
    for seed in range(30):
        found = fuzz.judge(fuzz.mutated(_seeds()[name], seed), execute=False)
        assert found is None, f"seed {seed} of {name}: {found}"


def test_what_is_accepted_runs_in_litert(tmp_path):
    corpus, findings = tmp_path / "corpus", tmp_path / "findings"
    corpus.mkdir()
    for name, data in _seeds().items():
        (corpus / f"{name}.tflite").write_bytes(data)
    command = [sys.executable, "-m", "launch.fuzz", "--changes=10", f"--corpus={corpus}"]
    done = subprocess.run(
        [*command, f"--findings={findings}"], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == f"{10 * len(_seeds())} files tried, 0 findings\n", done.stderr
    assert done.returncode == 0 and not list(findings.iterdir())


def test_another_error_of_the_reader_is_a_finding(monkeypatch):
    def broken(data):
        raise KeyError(data[:4])

    monkeypatch.setattr(flatbuffer, "read", broken)
    assert fuzz.judge(b"file") == "the reader raised KeyError: b'file'"


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "LiteRT died of SIGSEGV"),
        (lambda: os.kill(os.getpid(), signal.SIGALRM), "LiteRT took too long"),
        (lambda: os._exit(3), "LiteRT left with the status 3"),
    ],
)
def test_the_end_of_the_process_is_a_finding(monkeypatch, end, expected):
    from ai_edge_litert import interpreter

    monkeypatch.setattr(interpreter.Interpreter, "__init__", lambda self, **_: end())
    assert fuzz.judge(_seeds()["int8"]) == expected
