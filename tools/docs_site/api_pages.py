"""Pages of what is public in a package: for MkDocs' mkdocstrings, which reads the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["PACKAGES", "api_page", "public_names"]

# Package, by its file -> its page.
PACKAGES = {
    "d2_cityscapes/__init__.py": "api/index.md",
    **{
        f"d2_cityscapes/{room}/__init__.py": f"api/{room}.md"
        for room in (
            "labels",
            "data",
            "layers",
            "structures",
            "modeling",
            "engine",
            "evaluation",
            "convert",
            "export",
        )
    },
}


def api_page(path: Path) -> str:
    """The page of a package or module.

    Args:
        path: its file.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = _module_name(path)
    names = public_names(path)
    text = [f"# {package}", "", ast.get_docstring(tree) or "", ""]
    if names:
        listed = "".join(f"    {name},\n" for name in names if not name.startswith("_"))
        text += [f"```python\nfrom {package} import (\n{listed})\n```", ""]
    for name, module in names.items():
        text += [f"::: {module}.{name}", ""]
    return "\n".join(text)


def public_names(path: Path) -> dict[str, str]:
    """Name in ``__all__`` -> the module that defines it, in the order of ``__all__``.

    Args:
        path: file of a package, whose names may come from an import, from a table for
            `lazy_exports`, or be its own.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = _module_name(path)
    modules: dict[str, str] = {}
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            modules |= {alias.name: str(node.module) for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__getattr__":
            assert isinstance(node.value, ast.Call)
            modules |= ast.literal_eval(node.value.args[1])
    return {name: modules.get(name, own) for name in names}


def _module_name(path: Path) -> str:
    parts = list(path.with_suffix("").parts)
    parts = parts[parts.index("d2_cityscapes") :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
