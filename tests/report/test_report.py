"""Rows come out the same in the terminal, in JSON, in the picture and on the page."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
import rich.console
from PIL import Image

from compressjax import pruning, report
from compressjax.report import page, plots, table
from compressjax.search import Round

ROWS = [
    report.StageRow("train", 12_345, 12_345, 1_000_000, 60_000, 55_000, 54_000, 0.9925, 0.1234),
    report.StageRow("prune", 12_345, 3_000, 1_000_000, 60_000, 21_000, 20_000, 0.9875, None),
    report.StageRow("shrink", 3_300, 800, 270_000, 16_000, 9_000, 8_000, 0.43, 0.05),
    report.StageRow("int8", 3_300, 800, 270_000, 6_000, 3_100, 3_000, 0.99, 0.02),
]
VERIFIED = [
    report.VerifyRow("model_int8.tflite", "jax2tf", 360, 1_234_567, 0, 0, 1.0, None),
    report.VerifyRow("other.tflite", "litert", 360, 1_234_567, 3, 2, 0.9972, "conv_1"),
]
ORIGIN = report.provenance("python -m experiments.run --x='<y>'", "digits, 1437 + 360", 3)


SCAN = pruning.Sensitivity(
    np.array([0.5, 0.925]),
    0.9925,
    {f"Conv_{i}/kernel": np.array([0.99 - i / 100, 0.5 - i / 100]) for i in range(40)},
)
HISTORY = [Round(0.0, 0.9925), Round(0.5, 0.985), Round(0.875, 0.97)]


def shown(renderable, width=200):
    console = rich.console.Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_terminal_table_says_every_figure():
    text = shown(table.stages(ROWS))
    figures = r"int8 +3,300 +800 +270,000 +6,000 +10\.0x +3,100 +3,000 +99\.00 % +20\.0 µs"
    assert re.search(figures, text)
    assert re.search(r"prune .* 1\.0x .*98\.75 %\s*$", text, re.MULTILINE)


def test_terminal_verification_names_the_first_layer_that_differs():
    text = shown(table.verification(VERIFIED))
    assert re.search(r"model_int8\.tflite +jax2tf +360 +1,234,567 +0 +0 +100\.00 % +none", text)
    assert re.search(r"other\.tflite .* 3 +2 +99\.72 % +conv_1", text)


def test_json_round_trip_with_circumstances():
    value = json.loads(json.dumps(report.to_json(ROWS, VERIFIED, ORIGIN)))
    assert [report.StageRow(**row) for row in value["rows"]] == ROWS
    assert [report.VerifyRow(**row) for row in value["verification"]] == VERIFIED
    assert report.Provenance(**value["provenance"]) == ORIGIN
    assert {"jax", "flax", "numpy"} <= value["provenance"]["versions"].keys()
    assert "cores" in value["provenance"]["hardware"]


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK])
def test_picture_is_drawn_in_its_theme_and_reproducible(theme):
    png = plots.overview(ROWS, theme)
    assert png == plots.overview(ROWS, theme)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    corner = "#" + "".join(f"{c:02x}" for c in image[0, 0])
    assert corner == theme.background
    accent = np.array([int(theme.accent[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(image.astype(int) - accent).max(axis=-1) < 3).mean() > 0.01


def test_picture_of_one_stage():
    assert plots.overview(ROWS[:1]).startswith(b"\x89PNG")


def test_terminal_table_of_a_scan():
    text = shown(table.sensitivity(SCAN))
    assert re.search(r"sparsity +50 % +92\.5 %", text)
    assert re.search(r"whole +99\.25 *$", text, re.MULTILINE)
    assert re.search(r"Conv_39/kernel +60\.00 +11\.00", text)


def test_terminal_table_of_a_search_says_where_the_floor_was_missed():
    text = shown(table.search(HISTORY, 0.98))
    assert re.search(r"level +accuracy +floor 98\.00 %", text)
    assert re.search(r"start +0 % +99\.25 % +met", text)
    assert re.search(r"2 +87\.5 % +97\.00 % +missed", text)


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK])
@pytest.mark.parametrize(
    "draw",
    [
        lambda theme: plots.sensitivity(SCAN, theme),
        lambda theme: plots.search(HISTORY, 0.98, theme),
    ],
)
def test_pictures_of_a_scan_and_a_search_are_drawn_in_their_theme(draw, theme):
    png = draw(theme)
    assert png == draw(theme)
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    background = np.array([int(theme.background[i : i + 2], 16) for i in (1, 3, 5)])
    assert (image[0, 0] == background).all()
    assert 0.01 < (np.abs(image.astype(int) - background).max(axis=-1) > 30).mean() < 0.3


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and collects the tables' texts and all links."""

    VOID = frozenset({"meta", "img", "source", "link", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.links, self.rows = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[-1].append(data)


def test_page_is_whole_self_contained_and_escaped():
    text = page.render("Digits & more", ROWS, VERIFIED, ORIGIN)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in reader.links)
    assert not re.search(r"https?://", text)
    assert "Digits &amp; more" in text
    assert "&lt;y&gt;" in text
    rows = {row[0]: tuple(row[1:]) for row in reader.rows}
    for row in ROWS:
        assert rows[row.stage] == tuple(c for c in table.stage_cells(row, ROWS[0]) if c)
    assert rows["other.tflite"] == table.verify_cells(VERIFIED[1])
    assert '<tr class="differs"><th scope="row">other.tflite' in text


def test_page_headline():
    text = page.render("Digits", ROWS, VERIFIED[:1], ORIGIN)
    assert "<dt>smaller file</dt><dd>10.0x</dd>" in text
    assert "<dt>test accuracy, -0.25 points</dt><dd>99.00 %</dd>" in text
    assert "<dt>of 1,234,567 values differ on LiteRT</dt><dd>0</dd>" in text
    assert "Verification" not in page.render("Digits", ROWS, [], ORIGIN)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no stages to draw"):
        plots.overview([])
    with pytest.raises(ValueError, match="no leaves to draw"):
        plots.sensitivity(SCAN._replace(scores={}))
    with pytest.raises(ValueError, match="no rounds to draw"):
        plots.search([], 0.5)
    with pytest.raises(ValueError, match="no stages to show"):
        page.render("Digits", [], [], ORIGIN)
