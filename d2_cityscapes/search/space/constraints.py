"""Constraints between config keys: "MODEL.RPN.IOU_THRESHOLDS[0] < MODEL.RPN.IOU_THRESHOLDS[1]"."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from d2_cityscapes.search.errors import SearchError

__all__ = ["Constraint"]

_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type, Callable] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_USE = "use comparisons of config keys and numbers, with + - * / ( ) and, or, not"


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
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise SearchError(f"constraint {self.text!r}: not an expression; {_USE}") from error
        self._names: dict[ast.AST, str] = {}
        self._check(self._tree)
        if not isinstance(self._tree, ast.Compare | ast.BoolOp | ast.UnaryOp) or not self._names:
            raise SearchError(f"constraint {self.text!r}: compares no config keys; {_USE}")
        self.names = tuple(dict.fromkeys(self._names.values()))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is true.

        Args:
            values: name -> value, for all `names`.
        """
        try:
            return bool(self._value(self._tree, values))
        except (TypeError, ZeroDivisionError) as error:
            raise SearchError(f"constraint {self.text!r}: {error}") from error

    def _check(self, node: ast.AST) -> None:
        """Refuse what `_value` does not know, and collect the names."""
        name = _key_name(node)
        if name is not None:
            self._names[node] = name
            return
        known = (ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp)
        number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
        parts: list = [*getattr(node, "ops", []), getattr(node, "op", None)]
        operators = (*_BINARY, *_COMPARISONS, ast.And, ast.Or, ast.Not, ast.USub)
        if not (isinstance(node, known) or number) or any(
            part is not None and not isinstance(part, operators) for part in parts
        ):
            raise SearchError(f"constraint {self.text!r}: cannot use {ast.unparse(node)!r}; {_USE}")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._check(child)

    def _value(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        if node in self._names:
            return values[self._names[node]]
        match node:
            case ast.Constant():
                return node.value
            case ast.BinOp():
                left, right = self._value(node.left, values), self._value(node.right, values)
                return _BINARY[type(node.op)](left, right)
            case ast.UnaryOp():
                value = self._value(node.operand, values)
                return not value if isinstance(node.op, ast.Not) else -value
            case ast.BoolOp():
                parts = (self._value(part, values) for part in node.values)
                return any(parts) if isinstance(node.op, ast.Or) else all(parts)
            case ast.Compare():
                terms = [self._value(term, values) for term in (node.left, *node.comparators)]
                pairs = zip(node.ops, terms, terms[1:], strict=False)
                return all(_COMPARISONS[type(op)](left, right) for op, left, right in pairs)
        raise AssertionError(node)  # `_check` lets nothing else pass


def _key_name(node: ast.AST) -> str | None:
    """The config key that a node spells, e.g. "MODEL.ANCHOR_GENERATOR.SIZES[0][0]"."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            parent = _key_name(node.value)
            return parent and f"{parent}.{node.attr}"
        case ast.Subscript(slice=ast.Constant(value=int(index))):
            parent = _key_name(node.value)
            return parent and f"{parent}[{index}]"
    return None
