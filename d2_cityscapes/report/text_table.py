"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "markdown_table"]


def aligned(lines: Sequence[Sequence[str]], *, words: int = 0) -> list[str]:
    """Columns side by side, for a terminal.

    Args:
        lines: cells of each line, as many in each.
        words: how many of the first columns are words, which begin where the column does; the
            others are numbers, which end there.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], *, words: int) -> str:
    """The same in Markdown; ``words`` as in `aligned`."""
    alignment = ["---" if i < words else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, alignment, *lines))
