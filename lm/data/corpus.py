"""Corpora: named documents in shards.

`builtin()` is what the running Python carries, `folder(path)` any folder of
text, JSONL, or either gzipped. A document's name decides, by its hash, whether
it is held out; so the split is the same on every machine.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import platform
from typing import Any
import zlib

from lm.data import stdlib
from lm.types import UserError

SUFFIXES = (".txt", ".jsonl", ".md", ".rst", ".py")
_SHARD_BYTES = 4_000_000
_PASSAGE = 65_536  # Longer texts count as several documents, in characters.

Named = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents in shards.

  Attributes:
    shards: each gives (name, text) pairs from its beginning; they pickle.
    source: where it comes from, for people.
    key: changes whenever the documents would.
  """

  shards: Sequence[Callable[[], Iterable[Named]]]
  source: Mapping[str, Any]
  key: str

  @property
  def num_shards(self) -> int:
    return len(self.shards)

  def read(self, shard: int | None = None) -> Iterator[Named]:
    """(name, text) of one shard, or of all in order."""
    for read in self.shards if shard is None else [self.shards[shard]]:
      yield from read()

  def texts(self, split: str = "train", holdout: float = 0.0) -> Iterator[str]:
    """The texts of a split, for training a vocabulary."""
    for name, content in self.read():
      if split_of(name, holdout) == split:
        yield content


def load(spec: str | os.PathLike) -> Corpus:
  """"builtin", or a folder or file."""
  return builtin() if str(spec) == "builtin" else folder(spec)


def split_of(name: str, holdout: float) -> str:
  """"validation" for a share `holdout` of all names, else "train"."""
  draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
  return "validation" if draw < holdout * 2**48 else "train"


def builtin() -> Corpus:
  """The standard library's sources and documentation; no download.

  About 13 MB of source without tests, 0.7 MB of language reference and 0.7 MB
  of docstrings of modules written in C. It differs between Python versions.
  """
  files = stdlib.source_files()
  sizes = [(name, path, path.stat().st_size) for name, path in files]
  groups = _group(sizes)
  shards: list[Callable[[], Iterable[Named]]] = [
      functools.partial(_read_sources, tuple(g)) for g in groups]
  shards.append(_read_documentation)
  key = [platform.python_version(), [(n, s) for n, _, s in sizes]]
  return Corpus(shards, {"corpus": "Python standard library, PSF licence",
                         "python": platform.python_version()},
                hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16])


def _read_sources(files: Sequence[tuple[str, pathlib.Path]]) -> Iterator[Named]:
  for name, path in files:
    if text := stdlib.read_source(path):
      yield from _passages(name, text)


def _read_documentation() -> Iterator[Named]:
  for name, text in stdlib.topics():
    yield from _passages(f"topics/{name}", text)
  modules: dict[str, list[str]] = {}
  for item in stdlib.documented():
    modules.setdefault(item.name.split(".")[0], []).append(
        f"{item.name}{item.signature}\n\n{item.doc}\n")
  for module, parts in modules.items():
    yield from _passages(f"documentation/{module}", "\n".join(parts))


def folder(path: str | os.PathLike, *, text_key: str = "text") -> Corpus:
  """Any folder (or file) of .txt, .md, .rst, .py, .jsonl, or these with .gz.

  A text file is a document (long ones are cut between lines into several), a
  line of JSONL is one, under `text_key`.

  Raises:
    UserError: no such folder or nothing in it; when it is read: an empty or
      binary file, a malformed line.
  """
  paths = find_files(path, suffixes=SUFFIXES)
  root = pathlib.Path(path)
  root = root if root.is_dir() else root.parent
  pieces = []
  for p in paths:
    size = p.stat().st_size * (4 if p.suffix == ".gz" else 1)
    if not size:
      raise UserError(f"{p} is empty: fill it or leave it out")
    count = (-(-size // (2 * _SHARD_BYTES)) if _kind(p) == ".jsonl" else 1)
    name = p.relative_to(root).as_posix()
    pieces += [(name, (p, i, count), size // count) for i in range(count)]
  shards = [functools.partial(_read_files, tuple(g), text_key)
            for g in _group(pieces)]
  return Corpus(shards, {"corpus": root.name, "files": len(paths)},
                json.dumps([fingerprint(paths), text_key]))


def _read_files(files: Sequence[tuple[str, tuple[pathlib.Path, int, int]]],
                text_key: str) -> Iterator[Named]:
  for name, (path, index, count) in files:
    if _kind(path) != ".jsonl":
      yield from _passages(name, _read_text(path))
      continue
    for where, row in read_jsonl(path, index=index, count=count):
      text = row.get(text_key)
      if not isinstance(text, str):
        raise UserError(f"{where}: no text under {text_key!r}: correct the row"
                        " or name another key")
      if text:
        line = where.rpartition(":")[2]
        yield f"{name}:{line}", text


def _read_text(path: pathlib.Path) -> str:
  try:
    raw = path.read_bytes()
    if path.suffix == ".gz":
      raw = gzip.decompress(raw)
    text = raw.decode("utf-8-sig")
  except (OSError, EOFError, zlib.error) as e:
    raise UserError(f"{path} cannot be read: {e}") from e
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is binary or not UTF-8 (byte {e.start}): convert"
                    " it or leave it out") from e
  if "\0" in text:
    raise UserError(f"{path} is binary (it holds NUL bytes): leave it out")
  if not text.strip():
    raise UserError(f"{path} is empty: fill it or leave it out")
  return text


def read_jsonl(path: pathlib.Path, *, index: int = 0, count: int = 1
               ) -> Iterator[tuple[str, dict[str, Any]]]:
  """("file:line", row) of a .jsonl or .jsonl.gz file.

  Args:
    path: the file.
    index: of `count` parts of its lines, taken in turn, which one.
    count: how many parts.

  Raises:
    UserError: a line that is not a JSON object, an empty or unreadable file.
  """
  number, rows = 0, 0
  try:
    opened = (gzip.open(path, "rb") if path.suffix == ".gz"
              else open(path, "rb"))
    with opened as f:
      for number, line in enumerate(f, 1):
        if not line.strip():
          continue
        rows += 1
        if number % count != index:
          continue
        row = json.loads(line)
        if not isinstance(row, dict):
          raise ValueError("it is not an object")
        yield f"{path}:{number}", row
  except (OSError, EOFError, zlib.error) as e:
    raise UserError(f"{path} cannot be read: {e}") from e
  except ValueError as e:  # Not JSON, or not UTF-8.
    raise UserError(f"{path}:{number}: not a JSON object ({e}): correct or"
                    " delete this line") from e
  if not rows:
    raise UserError(f"{path} is empty: fill it or leave it out")


def find_files(where: str | os.PathLike | Sequence[Any], *,
               suffixes: Sequence[str]) -> list[pathlib.Path]:
  """Files with these endings (or these and .gz) in folders, sorted.

  Raises:
    UserError: a name that does not exist, a file of another kind, no file.
  """
  if isinstance(where, str | os.PathLike):
    where = [where]
  found = []
  for name in map(pathlib.Path, where):
    if name.is_dir():
      here = [p for p in name.rglob("*") if _kind(p) in suffixes
              and p.is_file() and not p.name.startswith(".")]
      if not here:
        raise UserError(f"{name} holds no {', '.join(suffixes)} file (or .gz of"
                        " one): give a folder of text")
      found += sorted(here)
    elif not name.exists():
      raise UserError(f"no such file or folder: {name}")
    elif _kind(name) not in suffixes:
      raise UserError(f"{name} is none of {', '.join(suffixes)} (or .gz of"
                      " one): convert it")
    else:
      found.append(name)
  return found


def fingerprint(paths: Sequence[pathlib.Path]) -> list[Any]:
  """Name, size and a checksum of both ends of each file."""
  marks = []
  for path in paths:
    with open(path, "rb") as f:
      size = f.seek(0, os.SEEK_END)
      f.seek(0)
      ends = f.read(1 << 20)
      f.seek(max(0, size - (1 << 20)))
      ends += f.read()
    marks.append([path.name, size, hashlib.sha256(ends).hexdigest()[:16]])
  return marks


def _kind(path: pathlib.Path) -> str:
  """The ending without .gz: ".txt" for a.txt and a.txt.gz."""
  return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _passages(name: str, text: str) -> Iterator[Named]:
  """The text whole, or cut between lines where it is very long."""
  if len(text) <= _PASSAGE:
    yield name, text
    return
  start = number = 0
  while start < len(text):
    end = min(len(text), start + _PASSAGE)
    if end < len(text):
      end = text.rfind("\n", start, end) + 1 or end
    yield f"{name}#{number}", text[start:end]
    start, number = end, number + 1


def _group(
    items: Sequence[tuple[str, Any, int]]) -> list[list[tuple[str, Any]]]:
  """Neighbouring items together up to about the size of a shard."""
  groups, size = [[]], 0
  for name, item, weight in items:
    if groups[-1] and size + weight > _SHARD_BYTES:
      groups.append([])
      size = 0
    groups[-1].append((name, item))
    size += weight
  return groups
