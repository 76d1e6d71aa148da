"""Files are whole or absent, whatever happens while they are written."""

import json
import os
import stat

import pytest

from compressjax import _atomic


def test_replaces_the_whole_file(tmp_path):
    path = tmp_path / "deep" / "model.bin"
    _atomic.write_bytes(path, b"long first version")
    _atomic.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["model.bin"]


def test_a_failed_rename_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    _atomic.write_bytes(path, b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        _atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_keeps_permissions_of_the_file_it_replaces(tmp_path):
    path = tmp_path / "a.txt"
    _atomic.write_text(path, "one")
    path.chmod(0o640)
    _atomic.write_text(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_text() == "two"


def test_json_refuses_what_json_cannot_say(tmp_path):
    path = tmp_path / "a.json"
    _atomic.write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        _atomic.write_json(path, {"accuracy": float("nan")})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
