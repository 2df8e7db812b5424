"""The files around the code: workflows, forms, Dockerfile and noxfile name what there is."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

import d2_cityscapes
from d2_cityscapes.doctor.software import RANGES
from d2c import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
CHOOSER = ROOT / ".github/ISSUE_TEMPLATE/config.yml"
FORMS = sorted(set(CHOOSER.parent.glob("*.yml")) - {CHOOSER})
NOXFILE, DOCKERFILE = ROOT / "noxfile.py", ROOT / "Dockerfile"
TEXTS = [
    *WORKFLOWS, *FORMS, NOXFILE, DOCKERFILE,
    *(ROOT / name for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "environment.yml")),
    ROOT / ".github/PULL_REQUEST_TEMPLATE.md",
]  # fmt: skip
FOLDERS = ("configs", "d2_cityscapes", "datasets", "docs", "tests", "tools", ".github", ".ci")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.fixture(scope="module")
def makefile() -> str:
    return (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def nox_constants() -> dict:
    """Plain values of the noxfile, without nox: ROWS, PLAIN, and the names of its sessions."""
    found: dict = {"sessions": set()}
    for node in ast.parse(NOXFILE.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found["sessions"].add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in ("ROWS", "PLAIN"):
                found[target.id] = ast.literal_eval(node.value)
    return found


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_paths_and_commands_exist(path: Path, makefile: str) -> None:
    text = path.read_text()
    words = {word.rstrip(".") for word in re.findall(r"(?<![\w./:-])[\w.][\w./-]*", text)}
    paths = {w for w in words if (w.split("/")[0] in FOLDERS and "/" in w) or w.endswith(".md")}
    assert not [name for name in paths if not (ROOT / name).exists()]
    commands = set(re.findall(r"\bd2c ([a-z][a-z0-9-]+)", text))
    assert commands <= COMMANDS.keys()
    targets = set(re.findall(r"\bmake ([a-z-]+)\b(?! \\)", text))
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows(path: Path, nox_constants: dict) -> None:
    """Actions by their major version, no rights but to read, and sessions of nox that there are."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    sessions = {
        *nox_constants["sessions"],
        *(f"{s}({row})" for s in nox_constants["sessions"] for row in nox_constants["ROWS"]),
    }
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
            cached = step.get("with", {}).get("cache-dependency-path", "Makefile")
            assert (ROOT / cached).is_file()
            run = step.get("run", "")
            if run.startswith("nox"):
                assert run.partition("--session ")[2].strip('"') in sessions


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_forms_have_what_github_asks_for(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids) >= 3
    kinds = {field["type"] for field in form["body"]}
    assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_bug_reports_come_with_the_doctor() -> None:
    (bug,) = [yaml.safe_load(path.read_text()) for path in FORMS if path.stem == "bug"]
    (doctor,) = [f for f in bug["body"] if f["attributes"].get("label") == "d2c doctor --json"]
    assert doctor["validations"]["required"]
    links = yaml.safe_load(CHOOSER.read_text())["contact_links"]
    assert all(link["url"].startswith("https://") and link["about"] for link in links)


def test_the_image_runs_a_target_with_variables_of_the_makefile(makefile: str) -> None:
    text = DOCKERFILE.read_text()
    *options, target = json.loads(text.partition("\nCMD ")[2])[1:]
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    variables = [o.partition("=")[0] for o in options if "=" in o]
    variables += re.findall(r"(\w+)=", text.partition("RUN make install")[2].splitlines()[0])
    assert {"VENV", "DEMO", "TORCH_INDEX"} == set(variables)
    assert all(re.search(rf"^{v} \?=", makefile, re.MULTILINE) for v in variables)
    assert text.rpartition("USER ")[2].split()[0] == "$UID"


def test_the_image_is_made_of_files_that_there_are() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert all([*ROOT.glob(pattern)] for pattern in kept)
    setup = (ROOT / "setup.py").read_text()
    shipped = ast.literal_eval(re.search(r"^_SHIPPED = (\[.*\])$", setup, re.MULTILINE)[1])
    assert all(any(name.startswith(pattern) for pattern in kept) for name in shipped)


def test_the_matrix_is_that_of_setup(nox_constants: dict) -> None:
    """Each Python that setup.py names has a row, and the oldest row is at its lower bounds."""
    setup, rows = (ROOT / "setup.py").read_text(), nox_constants["ROWS"]
    first, end = map(int, re.search(r"_PYTHON_MINORS = range\((\d+), (\d+)\)", setup).groups())
    assert {python for python, _ in rows.values()} == {f"3.{n}" for n in range(first, end)}
    python, pins = rows["oldest"]
    assert python == f"3.{first}"
    for pin in pins:
        name, _, version = pin.partition("==")
        assert version.startswith(re.search(rf'"{name}>=([\d.]+)"', setup)[1])


def test_the_doctor_knows_the_matrix(nox_constants: dict) -> None:
    """Its oldest versions are those of the oldest row; those of constraints.txt lie between."""
    python, pins = nox_constants["ROWS"]["oldest"]
    oldest = dict(pin.split("==") for pin in pins)
    assert RANGES["python"][0].startswith(f"{python}.")
    assert oldest == {name: first for name, (first, _) in RANGES.items() if name != "python"}
    for name, (first, last) in RANGES.items():
        for pin in re.findall(rf"(?mi)^{name}==(.+)$", (ROOT / "constraints.txt").read_text()):
            assert parsed(first) <= parsed(pin) <= parsed(last)


def test_plain_rooms_are_tested_without_detectron2(nox_constants: dict) -> None:
    plain = nox_constants["PLAIN"]
    assert all((ROOT / name.removeprefix("--ignore=")).exists() for name in plain)
    contract = (ROOT / "pyproject.toml").read_text().rpartition("source_modules = [")[2]
    rooms = re.findall(r'"d2_cityscapes\.(\w+)"', contract)
    tested = [f"tests/{room}" for room in rooms if (ROOT / "tests" / room).is_dir()]
    assert len(tested) > 5 and set(tested) <= set(plain)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == d2_cityscapes.__version__
    assert citation["license"] == "Apache-2.0"
