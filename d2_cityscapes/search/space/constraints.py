"""Constraints between config keys: "MODEL.RPN.IOU_THRESHOLDS[0] < MODEL.RPN.IOU_THRESHOLDS[1]"."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from d2_cityscapes.search.errors import SearchError

__all__ = ["Constraint"]

# A config key with indices; not the letter in 1e-4.
_KEY = re.compile(r"(?<![\w.])(?!(?:and|or|not|True|False)\b)[A-Za-z_]\w*(?:\.\w+)*(?:\[\d+\])*")
_USE = "use comparisons of config keys and numbers, with + - * / ( ) and, or, not"
_CONDITIONS = (ast.Compare, ast.BoolOp, ast.Not)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.And, ast.Or, ast.Not)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_PARTS = (ast.BinOp, ast.UnaryOp, ast.Load, *_CONDITIONS, *_OPERATORS, *_COMPARISONS)


class Constraint:
    """A condition that every sampled set of values meets.

    Attributes:
        text: as it was written.
        names: the config keys in it, with their indices: "MODEL.RPN.IOU_THRESHOLDS[0]".
    """

    def __init__(self, text: str) -> None:
        """
        Raises:
            SearchError: not a condition over config keys and numbers.
        """
        self.text = str(text)
        self.names = tuple(dict.fromkeys(_KEY.findall(self.text)))
        # Python evaluates it, with key0, key1, ... for the config keys.
        python = _KEY.sub(lambda key: f" key{self.names.index(key[0])} ", self.text)
        try:
            tree = ast.parse(python.strip(), mode="eval")
        except (SyntaxError, RecursionError, MemoryError) as error:  # the latter: too deep
            raise SearchError(f"constraint {self.text!r}: not an expression; {_USE}") from error
        condition = tree.body.op if isinstance(tree.body, ast.UnaryOp) else tree.body
        if not isinstance(condition, _CONDITIONS) or not all(map(_is_plain, ast.walk(tree.body))):
            raise SearchError(f"constraint {self.text!r}: not a condition; {_USE}")
        if not self.names:
            raise SearchError(f"constraint {self.text!r}: compares no config keys; {_USE}")
        self._code = compile(tree, self.text, "eval")

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is true.

        Args:
            values: name -> value, for all `names`.
        """
        keys = {f"key{index}": values[name] for index, name in enumerate(self.names)}
        try:
            return bool(eval(self._code, {"__builtins__": {}}, keys))
        except (TypeError, ZeroDivisionError) as error:
            raise SearchError(f"constraint {self.text!r}: {error}") from error


def _is_plain(node: ast.AST) -> bool:
    """Whether a part of an expression compares, combines, or is a number or the name of a key."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Name):
        return node.id.startswith("key")  # not a letter that `_KEY` does not know
    return isinstance(node, _PARTS)
