"""The README's Python runs as written, in order, and the files that its commands name exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def blocks(language):
    """Yields (line number, code) for every fenced block of a language."""
    text = README.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found.group(1)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    ran = 0
    for line, code in blocks("python"):
        # Blank lines in front make a traceback name the README's own line.
        exec(compile("\n" * line + code, str(README), "exec"), namespace)
        ran += 1
    assert ran > 0


def test_commands_name_files_that_exist():
    commands = "".join(code for _, code in blocks("(?:bash|sh)"))
    named = set(re.findall(r"\b(?:launch|experiments)/[\w/]+\.(?:py|sh)\b", commands))
    modules = re.findall(r"python -m ((?:compressjax|experiments)[\w.]*)", commands)
    named |= {module.replace(".", "/") + ".py" for module in modules}
    assert {"launch/demo.sh", "launch/test.sh"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
