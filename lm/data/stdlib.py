"""The text that every Python carries: library sources and documentation.

All of it is under the PSF licence. Nothing is downloaded. Of modules written in
Python only the source is read; those written in C are imported for docstrings.
"""

import ast
from collections.abc import Iterator
import contextlib
import functools
import inspect
import io
import pathlib
import sys
import sysconfig
import tokenize
from typing import NamedTuple
import warnings

# No tests, no other people's packages, no tables of numbers.
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages",
            "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
# Importing these does something visible.
_NOT_IMPORTED = {"antigravity", "this", "idlelib", "turtle", "turtledemo"}
# Modules that are better known by another name.
_ALIASES = {"posixpath": "os.path", "genericpath": "os.path", "posix": "os"}


class Documented(NamedTuple):
  """One documented object: `os.path.join`, `(a, *p)`, its docstring."""

  name: str
  kind: str  # "module", "class", "function" or "method".
  signature: str
  doc: str


def source_files() -> list[tuple[str, pathlib.Path]]:
  """(name, path) of the library's .py files without tests, by name."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  found = []
  for path in root.rglob("*.py"):
    name = path.relative_to(root)
    if not _SKIPPED.intersection(name.parts) and not (
        name.name.startswith(("test_", "_sysconfigdata"))):
      found.append((name.as_posix(), path))
  return sorted(found)


def read_source(path: pathlib.Path) -> str:
  """The text of a .py file in its declared encoding; "" if unreadable."""
  try:
    with tokenize.open(path) as f:
      return f.read()
  except (OSError, SyntaxError, UnicodeDecodeError):
    return ""


def topics() -> Iterator[tuple[str, str]]:
  """(name, text) of the language reference that `help()` shows."""
  try:
    from pydoc_data import topics as data  # pylint: disable=g-import-not-at-top
  except ImportError:
    return
  for name in sorted(data.topics):
    yield name, data.topics[name]


@functools.cache
def documented() -> tuple[Documented, ...]:
  """Public documented modules, classes, functions and methods, by module.

  It takes about three seconds once, and is then kept.
  """
  return tuple(_documented())


def _documented() -> Iterator[Documented]:
  for name, path in source_files():
    module = name.removesuffix(".py").replace("/", ".")
    module = module.removesuffix(".__init__")
    if not any(part.startswith("_") for part in module.split(".")):
      yield from _from_source(_ALIASES.get(module, module), read_source(path))
  for module in _c_modules():
    yield from _from_module(module)


def _from_source(module: str, source: str) -> Iterator[Documented]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      tree = ast.parse(source)
  except (SyntaxError, ValueError):
    return
  if doc := ast.get_docstring(tree):
    yield Documented(module, "module", "", doc)
  for node in tree.body:
    yield from _from_node(node, module, "function")


def _from_node(node: ast.AST, parent: str, kind: str) -> Iterator[Documented]:
  """A top-level definition and, for a class, its methods."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
    doc = ast.get_docstring(node)
    if doc and not node.name.startswith("_"):
      yield Documented(f"{parent}.{node.name}", kind,
                       f"({ast.unparse(node.args)})", doc)
  elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
    name = f"{parent}.{node.name}"
    if doc := ast.get_docstring(node):
      yield Documented(name, "class", "", doc)
    for child in node.body:
      if not isinstance(child, ast.ClassDef):
        yield from _from_node(child, name, "method")


def _c_modules() -> list[str]:
  """Public standard modules that are written in C, and builtins."""
  folder = pathlib.Path(sysconfig.get_path("stdlib")) / "lib-dynload"
  names = {p.name.split(".")[0] for p in folder.glob("*.so")}
  names |= set(sys.builtin_module_names)
  return sorted(n for n in names if n in sys.stdlib_module_names
                and not n.startswith("_") and n not in _NOT_IMPORTED)


def _from_module(name: str) -> Iterator[Documented]:
  try:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      module = __import__(name)
  except Exception:  # pylint: disable=broad-except
    return  # Built without what it needs: its documentation is missing.
  if doc := inspect.getdoc(module):
    yield Documented(name, "module", "", doc)
  title_of = _ALIASES.get(name, name)
  for key, value in sorted(vars(module).items()):
    if key.startswith("_") or getattr(value, "__module__", name) != name:
      continue
    kind = "class" if inspect.isclass(value) else "function"
    if not callable(value) or not (doc := _doc(value)):
      continue
    title = key if name == "builtins" else f"{title_of}.{key}"
    yield Documented(title, kind, _signature(value), doc)
    if kind == "class" and not issubclass(value, BaseException):
      for attribute, method in sorted(vars(value).items()):
        if not attribute.startswith("_") and callable(method) and (
            doc := _doc(method)):
          yield Documented(f"{title}.{attribute}", "method",
                           _signature(method), doc)


def _doc(value) -> str | None:
  doc = getattr(value, "__doc__", None)
  return inspect.cleandoc(doc) if isinstance(doc, str) else None


def _signature(value) -> str:
  try:
    return str(inspect.signature(value))
  except (ValueError, TypeError):
    return ""
