"""Plants an exception at one statement of the pack: finds the statements that a call really executes, and raises there.

Statements that cannot fail by themselves are left out (see `_can_fail`), and so are those that hand over to the host
or to another pack, since what fails in there is not ours.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True, order=True)
class Spot:
    """One statement of one file."""

    file: str  # relative to the pack
    line: int  # its first line
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.function})"


HANDS_OVER = {"outer_sample"}
"""Functions whose own statements only pass the host's arguments on. Faults are planted in what they call."""


class Spots:
    """The statements of some files of a pack at which an exception can be planted."""

    def __init__(self, pack: Path, globs: Sequence[str], beside: Collection[str] = ("define_schema",)) -> None:
        """pack: the folder as the host imported it; globs: relative to it, may match nothing.

        beside: functions during which nothing is planted. By default the description of a node, which is the same for
        every request and first made when the host starts.
        """
        self._beside = frozenset(beside)
        self._at: dict[str, dict[int, Spot]] = {}
        for file in sorted({file for glob in globs for file in pack.glob(glob)}):
            lines = _statements(file, str(file.relative_to(pack)))
            self._at[str(file)] = lines

    def executed(self, call: Callable[[], Any]) -> Counter[Spot]:
        """How often each statement is executed by `call`."""
        seen: Counter[Spot] = Counter()
        self._traced(call, lambda spot: seen.update([spot]))
        return seen

    def plant(self, spot: Spot, error: BaseException, call: Callable[[], Any], occurrence: int = 1) -> bool:
        """Run `call` with `error` raised at the n-th execution of `spot`; whether that was reached."""
        left = occurrence

        def raise_there(reached: Spot) -> None:
            nonlocal left
            if reached == spot:
                left -= 1
                if left == 0:
                    raise error

        self._traced(call, raise_there)
        return left <= 0

    def _is_beside(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name in self._beside:
                return True
            frame = frame.f_back
        return False

    def _traced(self, call: Callable[[], Any], reached: Callable[[Spot], None]) -> None:
        last: dict[FrameType, Spot] = {}

        def lines(frame: FrameType, event: str, _arg: Any) -> Any:
            if event == "line":
                spot = self._at[frame.f_code.co_filename].get(frame.f_lineno)
                if spot is not None and last.get(frame) != spot:  # a statement over several lines counts once
                    last[frame] = spot
                    reached(spot)
            elif event == "return":
                last.pop(frame, None)
            return lines

        def calls(frame: FrameType, _event: str, _arg: Any) -> Any:
            if frame.f_code.co_name in HANDS_OVER or frame.f_code.co_filename not in self._at:
                return None
            return None if self._is_beside(frame) else lines

        before = sys.gettrace()
        sys.settrace(calls)
        try:
            call()
        finally:
            sys.settrace(before)


def _statements(file: Path, name: str) -> dict[int, Spot]:
    """Line → the statement it belongs to, for the statements inside functions that can fail by themselves."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: dict[int, Spot] = {}
    handing_over = _handing_over(tree)

    def walk(node: ast.AST, function: str, parameters: frozenset[str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            own = node.args
            names = {a.arg for a in [*own.posonlyargs, *own.args, *own.kwonlyargs]} - {"self", "cls"}
            parameters |= names
            if not isinstance(node, ast.Lambda):
                function = f"{function}.{node.name}".strip(".")
        elif isinstance(node, ast.ClassDef):
            function = f"{function}.{node.name}".strip(".")
        elif isinstance(node, ast.stmt) and function and parameters is not None:
            parts = _own_parts(node)
            if _can_fail(node, parts) and not _hands_over(parts, parameters, handing_over):
                spot = Spot(name, node.lineno, function)
                for part in parts:
                    for line in range(part.lineno, (part.end_lineno or part.lineno) + 1):
                        found.setdefault(line, spot)
        for child in ast.iter_child_nodes(node):
            walk(child, function, parameters)

    walk(tree, "", frozenset())
    return {line: spot for line, spot in found.items() if _inside_function(tree, line)}


def _inside_function(tree: ast.Module, line: int) -> bool:
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return any(f.body[0].lineno <= line <= (f.end_lineno or 0) for f in functions)


def _own_parts(node: ast.stmt) -> list[Any]:
    """The expressions that a statement evaluates itself, without the statements inside it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Try):
        return []
    if isinstance(node, ast.With | ast.AsyncWith):
        return [item.context_expr for item in node.items]
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _can_fail(node: ast.stmt, parts: Iterable[ast.AST]) -> bool:
    """Whether anything could be raised here: a call, arithmetic, a comparison by value, an index.

    `isinstance`, `x.get(…)` and comparisons with `is` or of plain names cannot fail, so that the entry of a wrapper,
    which has nothing around it yet, may consist of them.
    """
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
        return False
    for part in parts:
        for inner in ast.walk(part):
            if isinstance(inner, ast.Call) and not _is_harmless(inner):
                return True
            if isinstance(inner, ast.BinOp | ast.Subscript | ast.Starred | ast.comprehension):
                return True
    return False


def _is_harmless(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        return call.func.id in ("isinstance", "getattr", "hasattr", "id", "type", "super", "callable")
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("get", "perf_counter", "setdefault")


def _callee(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _hands_over(parts: Iterable[ast.AST], parameters: frozenset[str], handing_over: frozenset[str]) -> bool:
    """Whether a statement calls what it was given (the host's executor, another patch), itself or by a helper."""
    for part in parts:
        for call in (n for n in ast.walk(part) if isinstance(n, ast.Call)):
            given = isinstance(call.func, ast.Name) and call.func.id in parameters
            if given or isinstance(call.func, ast.Subscript) or _callee(call) in handing_over:
                return True
    return False


def _handing_over(tree: ast.Module) -> frozenset[str]:
    """The names of this module's functions through which the host's executor is called."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    names: set[str] = set()
    before = -1
    while len(names) != before:
        before = len(names)
        for function in functions:
            for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
                if _callee(call) == "executor" or _callee(call) in names:
                    names.add(function.name)
    return frozenset(names)
