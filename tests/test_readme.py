"""The Python of the README and of every page runs as written; what commands name exists."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_OTHER_LANGUAGES = {"phone.md"}


def blocks(page, language):
    """Yields (line number, code) for every fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    ran = 0
    for line, code in blocks(page, "python"):
        # Blank lines in front make a traceback name the page's own line.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
        ran += 1
    assert (ran > 0) == (page.name not in OF_OTHER_LANGUAGES)


def test_commands_name_files_that_exist():
    commands = "".join(code for page in PAGES for _, code in blocks(page, "(?:bash|sh)"))
    named = set(re.findall(r"\b(?:launch|experiments)/[\w/]+\.(?:py|sh)\b", commands))
    modules = re.findall(r"python -m ((?:compressjax|experiments|launch)[\w.]*)", commands)
    named |= {module.replace(".", "/") + ".py" for module in modules}
    assert {"launch/demo.sh", "launch/test.sh"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
