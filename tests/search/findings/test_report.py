"""Text, pictures and page of a search, in every state that it may be in."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from PIL import Image

from d2_cityscapes.search.findings.confirm_table import ConfirmedTrial
from d2_cityscapes.search.findings.importance import Importance, Score
from d2_cityscapes.search.findings.plots import plot_search, short_names
from d2_cityscapes.search.findings.report import write_search_report
from d2_cityscapes.search.findings.summary import luck, summary

RATE, THRESHOLD = "SOLVER.BASE_LR", "MODEL.RPN.IOU_THRESHOLDS[0]"
FREEZE, BATCH = "MODEL.FREEZE.MODULES", "SOLVER.IMS_PER_BATCH"
SPACE: dict[str, BaseDistribution] = {
    RATE: FloatDistribution(1e-5, 1e-1, log=True),
    THRESHOLD: FloatDistribution(0.1, 0.4),
    FREEZE: CategoricalDistribution(['["backbone"]', "[]"]),
    BATCH: IntDistribution(1, 8),
}
PICTURES = {"history", "importances", "slices", "parallel_coordinates"}


def params(number: int) -> dict:
    """Of trial ``number``, without chance."""
    return {
        RATE: 10.0 ** -(1 + number % 4),
        THRESHOLD: 0.1 + 0.3 * (number * 0.618 % 1),
        FREEZE: ("[]", '["backbone"]')[number % 2],
        BATCH: 1 + number % 8,
    }


def make_study(values: list[float], direction: str = "maximize") -> optuna.Study:
    """Complete trials with these values."""
    study = optuna.create_study(direction=direction, study_name="town <1>")
    start = datetime(2026, 1, 2, 3, 4, 5)
    for number, value in enumerate(values):
        trial = create_trial(params=params(number), distributions=SPACE, value=value)
        trial.datetime_start = start
        trial.datetime_complete = start + timedelta(seconds=3723.5)
        study.add_trial(trial)
    return study


@pytest.fixture
def study() -> optuna.Study:
    """12 complete trials, number 3 the best, and one of each other kind."""
    study = make_study([10.0 + (number % 5) for number in range(3)] + [20.5] + [11.0, 12.0] * 4)
    for state, more in (
        (TrialState.PRUNED, {"intermediate_values": {1: 4.0, 2: 5.5}}),
        (TrialState.FAIL, {"user_attrs": {"reason": "RuntimeError: <out of memory>"}}),
        (TrialState.RUNNING, {}),
    ):
        study.add_trial(create_trial(state=state, params=params(1), distributions=SPACE, **more))
    study.add_trial(create_trial(state=TrialState.FAIL))
    return study


@pytest.fixture
def found() -> list[Importance]:
    """What `importances` might say of it."""
    strong, weak = Score(0.7, 0.1, 0.3, 1e-5), Score(0.1, 0.1, 0.3, 0.8)
    return [
        Importance(RATE, strong, weak, strong),
        *(Importance(name, weak, weak, weak) for name in list(SPACE)[1:]),
    ]


@pytest.fixture
def cheap_study() -> optuna.Study:
    """One trial that is complete, one that failed, two that were killed."""
    study = make_study([1.0])
    for reason in ("CUDA out of memory", "interrupted: killed", "interrupted: gone"):
        trial = create_trial(
            state=TrialState.FAIL, params=params(1), distributions=SPACE,
            user_attrs={"reason": reason},
        )  # fmt: skip
        study.add_trial(trial)
    return study


class Page(HTMLParser):
    """Checks that tags close in order, and collects texts and picture sources."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.sources: list[str] = []
        self.feed(path.read_text())
        assert not self.open

    def handle_starttag(self, tag: str, attrs) -> None:
        assert "href" not in dict(attrs), "the page stands alone"
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_luck_of_the_papers_search() -> None:
    """Mean .19053, standard deviation .00406, best .20208 of 42: z 2.84.

    P would be .09 if mean and standard deviation were known beforehand; 100 000 draws of 42 normal
    numbers have .059.
    """
    rest = np.random.default_rng(0).normal(size=41)
    rest = (rest - rest.mean()) / rest.std()
    best = 0.20208
    mean, sd = (42 * 0.19053 - best) / 41, 0.0036
    for _ in range(30):  # the standard deviation of all 42, by trial
        values = np.append(mean + sd * rest, best)
        sd *= 0.00406 / values.std(ddof=1)
    assert values.max() == best
    result = luck(make_study(list(values)))
    assert result is not None
    assert result.z == pytest.approx(2.84, abs=0.01)
    assert result.p == pytest.approx(0.059, abs=0.002)
    mirrored = luck(make_study(list(-values), "minimize"))
    assert mirrored is not None
    assert mirrored.p == pytest.approx(result.p)


@pytest.mark.parametrize("count", [10, 42])
def test_luck_is_how_often_normal_draws_have_it(count: int) -> None:
    draws = np.random.default_rng(count).normal(size=(20000, count))
    far = (draws.max(1) - draws.mean(1)) / draws.std(1, ddof=1)
    for p in (0.02, 0.05, 0.1):
        typical = draws[np.argmin(np.abs(far - np.quantile(far, 1 - p)))]
        result = luck(make_study(list(typical)))
        assert result is not None
        assert result.p == pytest.approx(p, abs=0.008)


def test_luck_of_one_among_equals() -> None:
    result = luck(make_study([1.0] * 11 + [2.0]))
    assert result is not None and result.p < 1e-6


def test_luck_needs_different_values() -> None:
    assert luck(make_study([1.0, 2.0])) is None
    assert luck(make_study([1.0] * 20)) is None


def test_summary_names_the_best_and_what_acts(study: optuna.Study, found: list) -> None:
    text = summary(study, found=found)
    assert "12 complete, 1 pruned, 2 failed, 1 running" in text
    assert "best: trial 3, 20.5\n" in text
    assert re.search(rf"{re.escape(RATE)} +0.0001\n", text)
    assert re.search(rf"{re.escape(FREEZE)} +\[\"backbone\"\]\n", text)
    assert "median 11.5" in text
    assert f"{RATE} acts; the other 3 cannot be told from noise" in text
    assert len([line for line in text.splitlines() if "  noise  " in line]) == 3


def test_what_pruning_may_hide_is_not_called_noise(study: optuna.Study, found: list) -> None:
    found = [replace(one, enough=False) for one in found]
    text = summary(study, found=found)
    assert (
        f"{RATE} acts; the other 3 are not shown to act, but may: 12 trials are complete, 1" in text
    )
    assert "noise" not in text.replace("normal noise", "")
    assert len([line for line in text.splitlines() if "  not shown  " in line]) == 3
    assert "none of the 3 parameters is shown to act, but may" in summary(study, found=found[1:])
    assert "none of the 3 parameters acts" in summary(
        study, found=[replace(one, enough=True) for one in found[1:]]
    )


def test_a_killed_trial_is_no_failure(cheap_study: optuna.Study, tmp_path: Path) -> None:
    text = write_search_report(cheap_study, tmp_path).read_text()
    assert "1 complete, 1 failed, 2 interrupted" in text
    assert text.count("<tr class='interrupted'>") == 2


def test_summary_computes_importances_itself() -> None:
    text = summary(make_study([float(number % 4) for number in range(12)]))
    assert f"importances: {RATE} acts" in text


def test_summary_of_little(study: optuna.Study) -> None:
    assert "no trial is complete" in summary(optuna.create_study())
    text = summary(make_study([3.0]))
    assert "best: trial 0, 3" in text
    assert "1 complete and pruned trials are too few" in text
    assert "too few different values" in text


def test_pictures_are_drawn(study: optuna.Study, found: list) -> None:
    pictures = plot_search(study, found)
    assert set(pictures) == PICTURES
    for data in pictures.values():
        with Image.open(io.BytesIO(data)) as picture:
            assert min(picture.size) > 250
            assert np.asarray(picture.convert("L")).std() > 5


def test_pictures_of_little(found: list) -> None:
    assert plot_search(optuna.create_study()) == {}
    assert set(plot_search(make_study([1.0]))) == PICTURES - {"importances"}
    without = optuna.create_study()
    without.add_trial(create_trial(value=1.0))
    assert set(plot_search(without)) == {"history"}


def test_a_parameter_with_one_value_can_be_drawn() -> None:
    study = optuna.create_study()
    space = {"a": FloatDistribution(2.0, 2.0), "b": CategoricalDistribution(["x"])}
    study.add_trial(create_trial(params={"a": 2.0, "b": "x"}, distributions=space, value=1.0))
    assert "slices" in plot_search(study)


def test_short_names_stay_apart() -> None:
    names = [RATE, THRESHOLD, "MODEL.ROI_HEADS.IOU_THRESHOLDS[0]", "A.B.C.D", "X.B.C.D", "x"]
    assert list(short_names(names).values()) == [
        RATE, "RPN.IOU_THRESHOLDS[0]", "ROI_HEADS.IOU_THRESHOLDS[0]", "A.B.C.D", "X.B.C.D", "x",
    ]  # fmt: skip


def test_page_holds_all_trials_and_stands_alone(
    study: optuna.Study, found: list, tmp_path: Path
) -> None:
    study.set_user_attr(
        "search",
        {
            "space": {RATE: {"type": "log", "low": 1e-5, "high": 0.1}},
            "constraints": ["a < b"],
            "objective": {"dataset": "town_val", "task": "segm", "metric": "AP"},
            "budget": {"epochs": 5},
            "config": "SEED: 7 # <x>",
        },
    )
    confirmed = [ConfirmedTrial(3, 20.5, {1: 12.0, 2: 13.0}), ConfirmedTrial(5, 12.0, {1: 14.0})]
    path = write_search_report(study, tmp_path / "new", confirmed=confirmed, found=found)
    assert path == tmp_path / "new" / "report.html"
    page = Page(path)
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    pictures = {file.stem: file.read_bytes() for file in path.parent.glob("*.png")}
    assert set(pictures) == PICTURES
    inline = {base64.b64decode(source.partition(",")[2]) for source in page.sources}
    assert inline == set(pictures.values())
    for expected in (
        "Search town <1>", "maximize segm AP on town_val", "RuntimeError: <out of memory>",
        "(5.5 at 2)", "20.5", "1:02:03", "trial 5 takes the place of trial 3", '"low": 1e-05',
        "a < b", "SEED: 7 # <x>", "optuna", "2026-01-02 03:04:05", "running",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert path.read_text().count("<tr class='failed'>") == 2
    assert path.read_text().count("<tr class='best'>") == 1
    assert not list(path.parent.glob(".*"))


def test_page_says_no_password(found: list, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["search.py", "--storage", "postgresql://me:secret@host/x"])
    text = write_search_report(make_study([1.0]), tmp_path, found=found).read_text()
    assert "secret" not in text and "postgresql://me:***@host/x" in text


def test_page_of_an_empty_study(tmp_path: Path) -> None:
    page = Page(write_search_report(optuna.create_study(study_name="new"), tmp_path))
    assert page.sources == []
    assert "no trial is complete" in page.text
    assert "0 complete and pruned trials are too few" in page.text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_page_of_a_study_made_elsewhere(tmp_path: Path) -> None:
    page = Page(write_search_report(make_study([1.0, 2.0], "minimize"), tmp_path))
    assert "minimize objective" in page.text
    assert f"space: {THRESHOLD}" in page.text
