"""Nothing else in the package unpickles, or could by an option that it leaves alone."""

from __future__ import annotations

import ast

import pytest

UNPICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {("torch", "load"), ("np", "load"), ("numpy", "load")}
SAFE_LOADERS = {"weights_only", "allow_pickle"}


def _suspects(source: str) -> list[str]:
    """What of a module could unpickle, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            if any(name.split(".")[0] in UNPICKLES for name in names):
                found.append(f"{node.lineno}: import")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            value = node.func.value
            called = (value.id if isinstance(value, ast.Name) else "", node.func.attr)
            if called in LOADERS or called[1] in ("unsafe_load", "full_load"):
                found.append(f"{node.lineno}: {'.'.join(called)}")
        if isinstance(node, ast.keyword) and node.arg in SAFE_LOADERS:
            found.append(f"{node.value.lineno}: {node.arg}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "torch.load(path)", "np.load(path)",
        "yaml.unsafe_load(text)", "load(path, weights_only=False)",
    ],
)  # fmt: skip
def test_the_search_finds(source):
    assert _suspects(source)


def test_one_room_opens_pickles(repository):
    package = repository / "d2_cityscapes"
    files = [*package.rglob("*.py"), *(repository / "tools").rglob("*.py"), repository / "d2c.py"]
    found = {path: _suspects(path.read_text(encoding="utf-8")) for path in files}
    room = package / "tensor_files"
    assert {path.parent for path, places in found.items() if places} == {room}
