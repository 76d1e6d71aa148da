"""One self-contained HTML page for a run: open it anywhere, mail it, keep it.

The pictures are inside the file, it loads nothing from the network and follows the reader's light
or dark setting. The layout is in `page.html.j2`; the words of the cells come from `table.py`.
"""

import base64
from collections.abc import Sequence

import jinja2

from compressjax.report import plots, table
from compressjax.report.table import Provenance, StageRow, VerifyRow


def render(
    title: str,
    rows: Sequence[StageRow],
    verification: Sequence[VerifyRow],
    origin: Provenance,
) -> str:
    """Make the page.

    Args:
      title: heading of the page.
      rows: the stages, first to last; the last is compared with the first in the headline.
      verification: one row for each file that was verified.
      origin: from `table.provenance`.

    Returns:
      HTML.

    Raises:
      ValueError: there are no rows.

    Example:
      >>> row = StageRow('train', 10, 10, 100, 4096, 2048, 1536, 0.99)
      >>> page = render('Digits', [row], [], table.provenance('run', 'digits', 0))
      >>> '<h1>Digits</h1>' in page
      True
    """
    if not rows:
        raise ValueError("there are no stages to show; pass at least one row.")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compressjax.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, last = rows[0], rows[-1]
    return environment.get_template("page.html.j2").render(
        title=title,
        headline=_headline(first, last, verification),
        stage_columns=table.STAGE_COLUMNS,
        stages=[(row.stage, table.stage_cells(row, first)) for row in rows],
        verify_columns=table.VERIFY_COLUMNS,
        verification=[(row.model, row.differing, table.verify_cells(row)) for row in verification],
        light=_inline(plots.overview(rows, plots.LIGHT)),
        dark=_inline(plots.overview(rows, plots.DARK)),
        summary="; ".join(
            f"{r.stage}: {r.file_bytes:,} bytes, {100 * r.accuracy:.2f} %" for r in rows
        ),
        origin=origin,
    )


def _headline(
    first: StageRow, last: StageRow, verification: Sequence[VerifyRow]
) -> list[tuple[str, str]]:
    """The few figures a reader looks for, each with what it means."""
    change = 100 * (last.accuracy - first.accuracy)
    figures = [
        (f"{first.file_bytes / last.file_bytes:.1f}x", "smaller file"),
        (f"{first.macs / last.macs:.1f}x", "fewer multiply-accumulates"),
        (f"{100 * last.accuracy:.2f} %", f"test accuracy, {change:+.2f} points"),
    ]
    if verification:
        differing = sum(row.differing for row in verification)
        values = sum(row.values for row in verification)
        figures.append((f"{differing:,}", f"of {values:,} values differ on LiteRT"))
    return figures


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
