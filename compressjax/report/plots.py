"""The rows of a run, a scan, a search and a comparison of files as pictures.

Drawn without a display (matplotlib's object interface, no pyplot, so nothing global), in a light
and a dark version for the page.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compressjax.export.parity import Parity
from compressjax.pruning import Sensitivity
from compressjax.report.table import StageRow
from compressjax.search import Round


class Theme(NamedTuple):
    """Colours of a picture."""

    background: str
    text: str
    grid: str
    accent: str
    faint: str


LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", "#0a62c9", "#9cc3f0")
DARK = Theme("#12161c", "#e2e6eb", "#2c343e", "#6cb2ff", "#2f5c8f")
FALL = 4.0  # points under the best accuracy at which the left picture ends
_LEGEND_ROWS = 28  # leaves in a column of names


def overview(rows: Sequence[StageRow], theme: Theme = LIGHT) -> bytes:
    """Draw accuracy against file size, and the sizes of every stage.

    Args:
      rows: the stages, first to last.
      theme: colours.

    Returns:
      A PNG.

    Raises:
      ValueError: there are no rows.

    Example:
      >>> overview([StageRow('train', 10, 10, 100, 4096, 2048, 1536, 0.99)])[:4]
      b'\\x89PNG'
    """
    if not rows:
        raise ValueError("there are no stages to draw; pass at least one row.")
    figure = _figure(11, 4.2, theme)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for axes in (left, right):
        _style(axes, theme)
    _draw_accuracy(left, rows, theme)
    _draw_sizes(right, rows, theme)
    return _png(figure)


def sensitivity(scan: Sensitivity, theme: Theme = LIGHT) -> bytes:
    """Draw accuracy against sparsity, a line for every leaf, coloured in the order of the scan.

    Args:
      scan: from `pruning.sensitivity`, of accuracies in [0, 1].
      theme: colours.

    Returns:
      A PNG.

    Raises:
      ValueError: the scan has no leaves.

    Example:
      >>> import numpy as np
      >>> scan = Sensitivity(np.array([0.5]), 0.99, {'Dense_0/kernel': np.array([0.9])})
      >>> sensitivity(scan)[:4]
      b'\\x89PNG'
    """
    if not scan.scores:
        raise ValueError("there are no leaves to draw; scan at least one.")
    columns = -(-len(scan.scores) // _LEGEND_ROWS)
    figure = _figure(6.5 + 2.6 * columns, 4.6, theme)
    axes = figure.subplots()
    _style(axes, theme)
    colours = matplotlib.colormaps["viridis"].resampled(len(scan.scores) + 1)
    levels = [0.0, *(100 * scan.levels)]
    for i, (path, scores) in enumerate(scan.scores.items()):
        heights = [100 * scan.dense, *(100 * scores)]
        axes.plot(levels, heights, color=colours(i), linewidth=1.4, marker="o", ms=3, label=path)
    axes.axhline(100 * scan.dense, color=theme.text, linewidth=0.8, linestyle=":")
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_title("One leaf pruned, the others whole", loc="left", color=theme.text, fontsize=11)
    axes.set_xlabel("zeros in this leaf, %", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    figure.legend(
        frameon=False, labelcolor=theme.text, fontsize=7, loc="outside right upper", ncols=columns
    )
    return _png(figure)


def search(history: Sequence[Round], floor: float, theme: Theme = LIGHT) -> bytes:
    """Draw the rounds of a search against its floor; a round that missed it is a triangle.

    Args:
      history: of a `Search` whose scores are accuracies in [0, 1].
      floor: the lowest accuracy that is good enough.
      theme: colours.

    Returns:
      A PNG.

    Raises:
      ValueError: there are no rounds.

    Example:
      >>> search([Round(0.0, 0.99), Round(0.5, 0.97)], 0.98)[:4]
      b'\\x89PNG'
    """
    if not history:
        raise ValueError("there are no rounds to draw; pass at least the start.")
    figure = _figure(6.5, 4.2, theme)
    axes = figure.subplots()
    _style(axes, theme)
    levels = [100 * level for level, _ in history]
    scores = [100 * score for _, score in history]
    axes.plot(levels, scores, color=theme.faint, linewidth=1.5, zorder=1)
    for level, score in zip(levels, scores, strict=True):
        marker = "o" if score >= 100 * floor else "v"
        axes.scatter(level, score, color=theme.accent, s=48, marker=marker, zorder=2)
    axes.axhline(100 * floor, color=theme.text, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"floor {100 * floor:.2f} %",
        (0, 100 * floor),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8,
        color=theme.text,
    )
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_title("Accuracy after each round", loc="left", color=theme.text, fontsize=11)
    axes.set_xlabel("level, %", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    return _png(figure)


def parity(found: Parity, theme: Theme = LIGHT) -> bytes:
    """Draw how each tensor of a file compares, from its inputs to its outputs.

    Args:
      found: from `export.verify`.
      theme: colours.

    Returns:
      A PNG: the part of the values that differ, on the default and, where they were run, on the
      reference kernels; beside it the error against the float model, if there was one.

    Raises:
      ValueError: nothing was compared.

    Example:
      >>> from compressjax.export import Layer
      >>> layers = (Layer('conv', 1000, 2, 1, sqnr_db=35.0),)
      >>> parity(Parity(1, 0.002, layers, 'conv', 1.0, 0.01, 0.001, 10))[:4]
      b'\\x89PNG'
    """
    if not found.layers:
        raise ValueError("there are no tensors to draw; verify at least one.")
    with_errors = any(layer.sqnr_db is not None for layer in found.layers)
    figure = _figure(12 if with_errors else 7.5, 1.6 + 0.22 * len(found.layers), theme)
    panels = figure.subplots(1, 1 + with_errors, sharey=True, squeeze=False)[0]
    for axes in panels:
        _style(axes, theme)
        axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    _draw_differences(panels[0], found, theme)
    if with_errors:
        places = [p for p, layer in enumerate(found.layers) if layer.sqnr_db is not None]
        ratios = [layer.sqnr_db for layer in found.layers if layer.sqnr_db is not None]
        finite = [ratio for ratio in ratios if math.isfinite(ratio)]
        ends = [ratio if math.isfinite(ratio) else max(finite, default=100.0) for ratio in ratios]
        panels[1].barh(places, ends, 0.6, color=theme.accent)
        panels[1].set_title("Against the float model", loc="left", color=theme.text, fontsize=11)
        panels[1].set_xlabel("signal to quantization noise, dB", fontsize=9)
    return _png(figure)


def _draw_differences(axes: Axes, found: Parity, theme: Theme) -> None:
    """Bars on a scale that shows one value in a million beside all of them."""
    sets = [("XNNPACK kernels", found, theme.accent)]
    if found.reference is not None:
        sets.append(("reference kernels", found.reference, theme.faint))
    height = 0.7 / len(sets)
    for i, (label, kernels, colour) in enumerate(sets):
        parts = [100 * layer.differing / max(layer.values, 1) for layer in kernels.layers]
        places = [p + (i - (len(sets) - 1) / 2) * height for p in range(len(parts))]
        axes.barh(places, parts, height, color=colour, label=label)
    names = [layer.name for layer in found.layers]
    axes.set_xscale("symlog", linthresh=1e-4)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 1e-4, 1e-2, 1, 100], ["0", "0.0001", "0.01", "1", "100"])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_title("Values that differ", loc="left", color=theme.text, fontsize=11)
    axes.set_xlabel("% (log)", fontsize=9)
    if len(sets) > 1:
        legend = axes.legend(frameon=False, labelcolor=theme.text, fontsize=8, ncols=2)
        legend.set_loc("lower right")
        legend.set_bbox_to_anchor((1, 1), axes.transAxes)


def _figure(width: float, height: float, theme: Theme) -> Figure:
    """An empty picture; sizes in inches."""
    size = (width, height)
    return Figure(figsize=size, dpi=160, facecolor=theme.background, layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.text, which="both", length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)


def _draw_accuracy(axes: Axes, rows: Sequence[StageRow], theme: Theme) -> None:
    """Points joined in the order of the stages; what fell far below is marked at the lower edge."""
    sizes = [row.file_bytes / 1024 for row in rows]
    accuracies = [100 * row.accuracy for row in rows]
    floor = max(accuracies) - FALL
    heights = [max(accuracy, floor) for accuracy in accuracies]
    axes.set_xscale("log", base=2)
    axes.plot(sizes, heights, color=theme.faint, linewidth=1.5, zorder=1)
    taken: dict[int, int] = {}
    for row, size, accuracy, height in zip(rows, sizes, accuracies, heights, strict=True):
        fell = accuracy < floor
        axes.scatter(size, height, color=theme.accent, s=48, marker="v" if fell else "o", zorder=2)
        above = taken.setdefault(row.file_bytes, 0) % 2 == 0 and not fell
        taken[row.file_bytes] += 1
        axes.annotate(
            f"{row.stage} ({accuracy:.1f} %)" if fell else row.stage,
            (size, height),
            xytext=(0, 9 if above else -17),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=theme.text,
        )
    margin = max(0.2 * (max(heights) - min(heights)), 0.5)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_title("Accuracy against file size", loc="left", color=theme.text, fontsize=11)
    axes.set_xlabel("file, KiB (log)", fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)


def _draw_sizes(axes: Axes, rows: Sequence[StageRow], theme: Theme) -> None:
    places = range(len(rows))
    files = [row.file_bytes / 1024 for row in rows]
    zipped = [row.gzip_bytes / 1024 for row in rows]
    axes.barh([p - 0.19 for p in places], files, 0.36, color=theme.accent, label="file")
    axes.barh([p + 0.19 for p in places], zipped, 0.36, color=theme.faint, label="gzip")
    for place, file, small in zip(places, files, zipped, strict=True):
        for offset, value in ((-0.19, file), (0.19, small)):
            axes.annotate(
                f"{value:.1f}",
                (value, place + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=theme.text,
            )
    axes.set_yticks(list(places), [row.stage for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(files + zipped))
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    axes.set_title("Size of each stage", loc="left", color=theme.text, fontsize=11)
    axes.set_xlabel("KiB", fontsize=9)
    axes.legend(frameon=False, labelcolor=theme.text, fontsize=9, loc="lower right")
