"""The rows of a run as pictures: what was given up, for what.

Drawn without a display (matplotlib's object interface, no pyplot, so nothing global), in a light
and a dark version for the page.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compressjax.report.table import StageRow


class Theme(NamedTuple):
    """Colours of a picture."""

    background: str
    text: str
    grid: str
    accent: str
    faint: str


LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", "#0a62c9", "#9cc3f0")
FALL = 4.0  # points under the best accuracy at which the left picture ends
DARK = Theme("#12161c", "#e2e6eb", "#2c343e", "#6cb2ff", "#2f5c8f")


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
      >>> overview([StageRow('train', 10, 10, 100, 4096, 2048, 0.99)])[:4]
      b'\\x89PNG'
    """
    if not rows:
        raise ValueError("there are no stages to draw; pass at least one row.")
    figure = Figure(figsize=(11, 4.2), dpi=160, facecolor=theme.background, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for axes in (left, right):
        _style(axes, theme)
    _draw_accuracy(left, rows, theme)
    _draw_sizes(right, rows, theme)
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
