"""What our self-contained HTML pages share: their look, tables, pictures, lists of facts."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["escaped", "facts_html", "page_html", "picture_url", "table_html"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #f5f6f8; margin: 0 }
main { max-width: 1240px; margin: 0 auto; padding: 24px }
h1 { font-size: 26px; margin: 8px 0 12px } h2 { font-size: 19px; margin: 36px 0 10px }
h3 { font-size: 15px; margin: 20px 0 6px; color: #46586b }
table { border-collapse: collapse; background: #fff; box-shadow: 0 1px 3px #0002 }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid #e6e9ed }
th { background: #eef1f4; font-weight: 600 } .name { text-align: left }
td { font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto } img { max-width: 100%; display: block }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px }
dt { color: #5b6b7b } dd { margin: 0; overflow-wrap: anywhere }
"""


def page_html(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """A whole page that stands alone.

    Args:
        title: plain text.
        parts: HTML of the body, in order.
        style: CSS that only this page needs.
    """
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body><main>\n{''.join(parts)}</main></body></html>\n"
    )


def table_html(
    head: Sequence[str],
    lines: Iterable[Sequence[str]],
    names: int,
    kinds: Sequence[str] | None = None,
) -> str:
    """A table of plain texts.

    Args:
        head, lines: its cells.
        names: how many of the first columns are words; the others are numbers.
        kinds: a CSS class for each line, "" for none.
    """

    def row(cells: Sequence[str], tag: str, kind: str = "") -> str:
        marks = [' class="name"' if i < names else "" for i in range(len(cells))]
        texts = (f"<{tag}{m}>{escaped(c)}</{tag}>" for m, c in zip(marks, cells, strict=True))
        return f"<tr{f' class={kind!r}' if kind else ''}>{''.join(texts)}</tr>"

    lines = list(lines)
    marked = zip(lines, kinds or [""] * len(lines), strict=True)
    body = "".join(row(line, "td", kind) for line, kind in marked)
    return f'<div class="scroll"><table>{row(head, "th")}{body}</table></div>'


def facts_html(facts: Mapping[str, object]) -> str:
    """A list of names and their values, without those that have none; "" where none has one."""
    items = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    return f"<dl>{items}</dl>" if items else ""


def picture_url(data: bytes, kind: str = "png") -> str:
    """An encoded picture, "png" or "jpeg", as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def escaped(text: str) -> str:
    """Plain text, safe inside HTML."""
    return html.escape(text)
