"""The parts that our HTML pages share."""

from __future__ import annotations

import base64

import pytest

from d2_cityscapes.report.page import facts_html, page_html, picture_url, table_html


def test_page_escapes_its_title_and_adds_style():
    page = page_html("a <b>", ["<h1>x</h1>", "<p>y</p>"], style="p { color: red }")
    assert "<title>a &lt;b&gt;</title>" in page
    assert "p { color: red }</style>" in page
    assert "<main>\n<h1>x</h1><p>y</p></main>" in page


def test_table_has_words_numbers_and_kinds():
    lines = [["<car>", "1.0"], ["bus", "2.0"]]
    assert table_html(["class", "AP"], iter(lines), 1, ["", "best"]) == (
        '<div class="scroll"><table>'
        '<tr><th class="name">class</th><th>AP</th></tr>'
        '<tr><td class="name">&lt;car&gt;</td><td>1.0</td></tr>'
        "<tr class='best'><td class=\"name\">bus</td><td>2.0</td></tr>"
        "</table></div>"
    )
    with pytest.raises(ValueError, match="argument"):
        table_html(["class"], lines, 1, ["best"])


def test_facts_without_a_value_are_left_out():
    assert facts_html({"a": 1, "b": None, "<c>": "x&y"}) == (
        "<dl><dt>a</dt><dd>1</dd><dt>&lt;c&gt;</dt><dd>x&amp;y</dd></dl>"
    )
    assert facts_html({"a": None, "b": ""}) == ""


def test_picture_is_in_its_address():
    url = picture_url(b"data", "jpeg")
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]) == b"data"
