"""Finds what the standard library says about itself: docstrings and pydoc topics.

Python sources are parsed, never imported, so nothing runs and private and nested definitions count too.
Extension modules have no source to parse: those are imported and inspected. Everything comes back in a
fixed order, so the same interpreter gives the same list. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_PARTS = frozenset(
    {"site-packages", "__pycache__", "__phello__", "this.py", "antigravity.py"}
)
EXTENSION_SUFFIX = ".cpython"
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing: where it lives, how it is called, what is said about it."""

    module: str  # dotted, "builtins" for what needs no import, "topics" for pydoc topics
    name: str  # qualified within the module; empty for the module itself
    kind: str  # module, class, function or topic
    signature: str  # "(a, *p)", the bases of a class, or empty
    doc: str

    @property
    def full_name(self) -> str:
        """The dotted name a reader would type."""
        prefix = "" if self.module in ("builtins", "topics") else self.module
        return ".".join(part for part in (prefix, self.name) if part)


def collect_entries() -> list[Entry]:
    """Every documented thing of this interpreter, each (text, name) once, in a fixed order."""
    found = [*_from_sources(), *_from_extensions(), *_from_topics()]
    unique = {(entry.full_name, entry.doc): entry for entry in found}
    return sorted(unique.values(), key=lambda e: (e.module, e.name, e.doc))


def _from_topics() -> Iterator[Entry]:
    """The language reference that `help("...")` shows."""
    for name, text in sorted(topics.items()):
        yield Entry("topics", name, "topic", "", inspect.cleandoc(text))


def _from_sources() -> Iterator[Entry]:
    """Docstrings of all Python files of the library, by parsing."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_PARTS.isdisjoint(relative.parts):
            yield from _from_file(path, _module_name(relative))


def _module_name(relative: Path) -> str:
    """`json/__init__.py` -> `json`, `json/decoder.py` -> `json.decoder`."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _from_file(path: Path, module: str) -> Iterator[Entry]:
    """Docstrings of one file; files kept broken on purpose, as test data, give nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _from_node(tree, module, "")


def _from_node(node: ast.AST, module: str, name: str) -> Iterator[Entry]:
    """The docstring of one definition, then those of the definitions inside it."""
    if isinstance(node, Documented) and (doc := ast.get_docstring(node)):
        kind, signature = _describe(node)
        yield Entry(module, name, kind, signature, doc)
    for child in ast.iter_child_nodes(node):
        inner = getattr(child, "name", "") if isinstance(child, Documented) else ""
        yield from _from_node(child, module, ".".join(part for part in (name, inner) if part))


def _describe(node: Documented) -> tuple[str, str]:
    """Kind and signature of a definition, without its annotations."""
    if isinstance(node, ast.Module):
        return "module", ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return "class", f"({bases})" if bases else ""
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return "function", f"({ast.unparse(node.args)})"


def _from_extensions() -> Iterator[Entry]:
    """Docstrings of modules written in C, by importing them."""
    folder = Path(sysconfig.get_config_var("DESTSHARED"))  # the same inside a virtual environment
    built = {path.name.partition(EXTENSION_SUFFIX)[0] for path in folder.glob("*.so")}
    for name in sorted(built | set(sys.builtin_module_names)):
        if "test" in name or name.startswith("xx") or name == "_tkinter":
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if module.__doc__:
            yield Entry(name, "", "module", "", inspect.cleandoc(module.__doc__))
        yield from _from_members(module, name)


def _from_members(module: types.ModuleType, name: str) -> Iterator[Entry]:
    """Classes with their methods, and functions, of an imported module."""
    for key, value in sorted(vars(module).items()):
        if inspect.isclass(value) and key != "__loader__":
            yield from _from_object(value, name, key, "class")
            for inner, member in sorted(vars(value).items()):
                if not inspect.isclass(member):
                    yield from _from_object(member, name, f"{key}.{inner}", "function")
        elif callable(value) and key != "__loader__":
            yield from _from_object(value, name, key, "function")


def _from_object(value: object, module: str, name: str, kind: str) -> Iterator[Entry]:
    """One entry, if the object carries a docstring of its own, not that of its class."""
    doc = getattr(value, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip() or doc == type(value).__doc__:
        return
    signature = getattr(value, "__text_signature__", None) or ""
    signature = signature.replace("$module, ", "").replace("$self, ", "").replace("$", "")
    yield Entry(module, name, kind, signature, inspect.cleandoc(doc))
