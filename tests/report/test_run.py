"""Loss curves and the HTML page, from folders as the tools leave them."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import make_rows, write_results
from d2_cityscapes.report.run import write_report


class Page(HTMLParser):
    """Checks that tags close in order, and collects text, table heads and picture sources."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.feed(path.read_text())
        assert not self.open

    def handle_starttag(self, tag: str, attrs) -> None:
        assert "href" not in dict(attrs), "the page stands alone"
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_report_of_stages(stages: Path) -> None:
    path = write_report(stages)
    assert path == stages / "report.html"
    page = Page(path)
    text = " ".join(page.text)
    for expected in ("stage0", "stage2", "32.00", "16.00", "val_report", "motorcycle", "town_<1>"):
        assert expected in text
    assert "segm, protocol COCO" in text
    assert "segm, protocol Cityscapes" in text
    assert "train_net.py '<x>'" in text
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "http" not in path.read_text().split("<body>")[0]


def test_stages_stand_side_by_side(stages: Path, write_run: Callable, tmp_path: Path) -> None:
    text = " ".join(Page(write_report(stages)).text)
    assert "Stages segm: the stages, scored by their masks" in text
    assert "AP_S AP_M AP_L AR@100 stage0 30.00" in text
    assert "segm: AP by class, scored by masks class stage0 stage1 stage2 car 30.00" in text
    alone = write_report(write_run(tmp_path / "run"))
    assert "the stages" not in alone.read_text()


def test_report_prefers_the_final_results(stages: Path) -> None:
    rows = make_rows("segm", {"AP": (77.0, 8)}, protocol="COCO", dataset="val_report", images=9)
    write_results(stages / "results.json", rows, seconds=1)
    text = write_report(stages).read_text()
    assert re.search(r'class="card"><b>77\.00', text)
    assert ">final<" in text


def test_report_of_one_run(write_run: Callable, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    assert write_report(write_run(tmp_path / "run"), output) == output
    assert "40.00" in output.read_text()
    assert not (tmp_path / "run" / "report.html").exists()


def test_report_of_a_run_that_was_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("")
    assert "Not evaluated" in write_report(tmp_path).read_text()


def test_neither_run_nor_stages(tmp_path: Path) -> None:
    with pytest.raises(D2CityscapesError, match="neither the output of"):
        write_report(tmp_path)
    with pytest.raises(D2CityscapesError, match="no such folder"):
        write_report(tmp_path / "nothing")


def test_picture_that_is_none(write_run: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "pictures" / "val_report" / "broken.png").write_text("no picture")
    with pytest.raises(D2CityscapesError, match=r"broken\.png: not a readable picture"):
        write_report(run)


def test_command(
    write_run: Callable,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(repository / "tools" / "report.py"), run_name="__main__")
        return int(done.value.code)

    page = tmp_path / "page.html"
    assert call(str(write_run(tmp_path / "run")), "--output", str(page)) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.is_file()
    assert call(str(tmp_path)) == 1
    assert re.fullmatch(r"error: .* neither the output of .*\n", capsys.readouterr().err)
    assert call() == 2


def test_no_file_of_a_run_is_overwritten(stages: Path) -> None:
    (stages / "stage0" / "model_final.pth").touch()
    before = {p: p.read_bytes() for p in stages.rglob("*") if p.is_file()}
    for name in (
        "anchors.json",
        "stage1/results.json",
        "stage1/metrics.json",
        "stage1/config.yaml",
        "stage0/model_final.pth",
        "stage2/pictures/val_report/town_<1>.png",
    ):
        with pytest.raises(D2CityscapesError, match="would be overwritten"):
            write_report(stages, stages / name)
    assert {p: p.read_bytes() for p in stages.rglob("*") if p.is_file()} == before
    for _ in range(2):
        write_report(stages, stages / "stage1" / "page.html")


@pytest.mark.parametrize(
    "content",
    [
        '{"results": [], "versions": 3}',
        '{"results": [], "versions": ["torch"]}',
        '{"results": [{"task": "segm", "metric": "AP", "value": "high", "protocol": "COCO",'
        ' "dataset": "val", "images": 9, "classes": 8}]}',
        "[" * 100_000,
    ],
)
def test_results_of_another_form_are_one_line(
    write_run: Callable, tmp_path: Path, content: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / "results.json").write_text(content)
    with pytest.raises(D2CityscapesError, match=r"results\.json: not a results\.json") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_pictures_of_another_form_are_one_line(write_run: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\1\0\0\0\0\x97\x8a\xc0\x93"
    (run / "pictures" / "val_report" / "bomb.png").write_bytes(header)
    with pytest.raises(D2CityscapesError, match=r"bomb\.png: "):
        write_report(run)
