"""The training text: functions and classes of the interpreter's own standard library."""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_PARTS = {
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "encodings",
    "pydoc_data",
    "lib2to3",
    "tkinter",
    "msilib",
    "distutils",
    "ensurepip",
    "__pycache__",
}
_MAX_FILE_BYTES = 400_000
_MIN_LINES, _MAX_CHARACTERS = 3, 1500
_MAX_LITERAL = 60

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class _Plain(ast.NodeTransformer):
    """Drops docstrings; unparsing drops the comments, so that code alone is left."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, Definition) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _has_long_literal(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Constant)
        and isinstance(part.value, str | bytes)
        and len(part.value) > _MAX_LITERAL
        for part in ast.walk(node)
    )


def _source(node: ast.stmt) -> str | None:
    """Canonical source of a definition, or nothing if it is trivial, long or full of text."""
    text = ast.unparse(node)
    fits = len(text) <= _MAX_CHARACTERS and text.count("\n") + 1 >= _MIN_LINES
    return text + "\n" if fits and not _has_long_literal(node) else None


def _class_pieces(node: ast.ClassDef) -> Iterator[str]:
    """The class as runs of its members, each under the class's first line and short enough."""
    piece: list[ast.stmt] = []
    for member in node.body:
        if _has_long_literal(member) or len(ast.unparse(member)) > _MAX_CHARACTERS:
            continue
        grown = ast.ClassDef(node.name, node.bases, node.keywords, [*piece, member], [])
        if piece and len(ast.unparse(grown)) > _MAX_CHARACTERS:
            yield _class_text(node, piece)
            piece = [member]
        else:
            piece = [*piece, member]
    if piece:
        yield _class_text(node, piece)


def _class_text(node: ast.ClassDef, members: list[ast.stmt]) -> str:
    return ast.unparse(ast.ClassDef(node.name, node.bases, node.keywords, members, [])) + "\n"


def module_pieces(text: str) -> Iterator[str]:
    """A module's imports, its functions and its classes, each as one short document."""
    tree = ast.parse(text)
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    definitions = [n for n in tree.body if isinstance(n, Definition)]
    head = "\n".join(ast.unparse(node) for node in imports)
    for index, definition in enumerate(definitions):
        plain = _Plain().visit(definition)
        if isinstance(plain, ast.ClassDef):
            pieces = [p for p in _class_pieces(plain) if p.count("\n") >= _MIN_LINES]
        else:
            source = _source(plain)
            pieces = [source] if source else []
        if index == 0 and pieces and imports and len(head) < _MAX_CHARACTERS // 3:
            pieces[0] = f"{head}\n\n{pieces[0]}"
        yield from pieces


def standard_library_pieces(seed: int) -> tuple[list[str], int]:
    """Every short function and class, in an order that the seed decides, and how many files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    pieces: dict[str, None] = {}
    num_files = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_PARTS.intersection(relative.parts) or path.stat().st_size > _MAX_FILE_BYTES:
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if text.strip() and text.isascii():
            num_files += 1
            pieces.update(dict.fromkeys(module_pieces(text)))
    ordered = list(pieces)
    random.Random(seed).shuffle(ordered)
    return ordered, num_files
