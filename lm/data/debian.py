"""A larger offline corpus, from Debian packages: `lm corpus debian OUT`.

About 155 MB of prose, dictionaries, manuals and formal proofs, one JSONL file a
source ({"id", "text"} a line). Packages are fetched with `apt-get download` and
unpacked with `dpkg -x`; neither needs root.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import gzip
import json
import os
import pathlib
import re
import shutil
import string
import subprocess
import tempfile
from typing import NamedTuple

from lm.data import store
from lm.types import UserError

Documents = Iterator[tuple[str, str]]
_MIN_CHARACTERS = 20
_BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


class Made(NamedTuple):
  """One file of the corpus."""

  name: str
  documents: int
  text_bytes: int


class Extractor(NamedTuple):
  """How a package becomes documents, and under which licence it is."""

  package: str
  licence: str
  read: Callable[[pathlib.Path], Documents]


def _files(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
  """Files that match, once each though links lead to them twice."""
  found = {}
  for path in sorted(root.glob(pattern)):
    if path.is_file():
      found.setdefault(path.resolve(), path)
  return list(found.values())


def _text(path: pathlib.Path) -> str:
  """UTF-8 where it is, else Latin-1, as older packages have."""
  opened = gzip.open if path.suffix in (".gz", ".dz") else open
  with opened(path, "rb") as f:
    raw = f.read()
  try:
    return raw.decode("utf-8")
  except UnicodeDecodeError:
    return raw.decode("latin-1")


def _each(pattern: str, skip: str = "") -> Callable[[pathlib.Path], Documents]:
  """Every file that matches `pattern` is a document."""
  def read(root: pathlib.Path) -> Documents:
    for path in _files(root, pattern):
      name = path.relative_to(root).as_posix()
      if not skip or skip not in name:
        yield name, _text(path)
  return read


def _dictionary(base: str) -> Callable[[pathlib.Path], Documents]:
  """A dictd dictionary: an index of base-64 offsets into one text."""
  def number(digits: str) -> int:
    value = 0
    for digit in digits:
      value = value * 64 + _BASE64.index(digit)
    return value

  def read(root: pathlib.Path) -> Documents:
    folder = root / "usr/share/dictd"
    body = gzip.decompress((folder / f"{base}.dict.dz").read_bytes())
    index = (folder / f"{base}.index").read_text("utf-8", errors="replace")
    seen = set()
    for line in index.splitlines():
      word, start, size = line.split("\t")[:3]
      if (start, size) in seen or word.startswith("00"):
        continue  # Another word for the same entry; the dictionary's header.
      seen.add((start, size))
      at = number(start)
      yield word, body[at : at + number(size)].decode("utf-8", "replace")
  return read


def _wordnet(root: pathlib.Path) -> Documents:
  """Glosses: "word, word (noun): what it means; examples"."""
  for kind in ("noun", "verb", "adj", "adv"):
    path = root / f"usr/share/wordnet/data.{kind}"
    for line in path.read_text("latin-1").splitlines():
      if line.startswith("  "):
        continue  # The licence.
      data, _, gloss = line.partition(" | ")
      fields = data.split()
      words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
      title = ", ".join(w.replace("_", " ") for w in words)
      yield f"{kind}-{fields[0]}", f"{title} ({kind}): {gloss.strip()}"


def _fortunes(root: pathlib.Path) -> Documents:
  for path in _files(root, "usr/share/games/fortunes/*"):
    if path.suffix not in (".dat", ".u8"):
      for i, text in enumerate(re.split(r"(?m)^%%?$", _text(path))):
        yield f"{path.name}-{i}", text


def _metamath(root: pathlib.Path) -> Documents:
  """Statements of set.mm with the comment before and the proof after them."""
  text = _text(root / "usr/share/metamath/databases/set.mm")
  statement = re.compile(
      r"\$\(((?:(?!\$\)).)*)\$\)\s*(\S+) (\$[ap]) ((?:(?!\$[.=]).)*)"
      r"(?:\$=((?:(?!\$\.).)*))?\$\.", re.DOTALL)
  words = lambda part: " ".join(part.split())
  for match in statement.finditer(text):
    comment, label, kind, formula, proof = match.groups()
    lines = [words(comment), f"{label} {kind} {words(formula)}"]
    if proof:
      lines.append(f"$= {words(proof)}")
    yield label, "\n".join(lines)


EXTRACTORS = {
    "python311_docs": Extractor("python3.11-doc", "PSF", _each(
        "usr/share/doc/python3.11/html/_sources/**/*.txt")),
    "linux61_docs": Extractor("linux-doc-6.1", "GPL-2", _each(
        "usr/share/doc/**/_sources/**/*.txt", skip="translations/")),
    "perl_pod": Extractor("perl-doc", "Artistic", _each("**/*.pod")),
    "anarchism_faq": Extractor("anarchism", "GFDL", _each(
        "usr/share/doc/anarchism/markdown/*.md*")),
    "gcide": Extractor("dict-gcide", "GPL", _dictionary("gcide")),
    "foldoc": Extractor("dict-foldoc", "GFDL", _dictionary("foldoc")),
    "jargon": Extractor("dict-jargon", "public domain", _dictionary("jargon")),
    "wordnet": Extractor("wordnet-base", "WordNet", _wordnet),
    "fortunes": Extractor("fortunes", "BSD", _fortunes),
    "hamexam": Extractor("hamexam", "GPL-3", _each(
        "usr/share/hamexam/*/*", skip=".png")),
    "metamath": Extractor("metamath-databases", "CC0", _metamath),
}


def build(
    out: str | os.PathLike, *, names: Sequence[str] = tuple(EXTRACTORS),
    unpacked: str | os.PathLike | None = None,
    report: Callable[[Made], None] = lambda made: None,
) -> list[Made]:
  """Writes OUT/NAME.jsonl for each name; those that exist are kept.

  Args:
    out: the folder; afterwards a corpus for `lm.data.corpus.folder`.
    names: of `EXTRACTORS`.
    unpacked: a folder with PACKAGE/ for each package, instead of apt.
    report: called with each file as it is made.

  Returns:
    What was made this time.

  Raises:
    UserError: an unknown name, no apt, or a package that apt does not have.
  """
  unknown = sorted(set(names) - set(EXTRACTORS))
  if unknown:
    raise UserError(f"no Debian source {unknown[0]!r}: there are"
                    f" {', '.join(EXTRACTORS)}")
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  made = []
  for name in names:
    path = out / f"{name}.jsonl"
    if path.exists():
      continue
    extractor = EXTRACTORS[name]
    with tempfile.TemporaryDirectory() as folder:
      root = (pathlib.Path(unpacked) / extractor.package if unpacked
              else _fetch(extractor.package, pathlib.Path(folder)))
      if not root.is_dir():
        raise UserError(f"{root} is missing: unpack {extractor.package} there"
                        f" (dpkg -x {extractor.package}_*.deb {root})")
      try:
        made.append(_write(path, extractor.read(root)))
      except (OSError, IndexError, ValueError) as e:
        raise UserError(f"package {extractor.package} is not laid out as"
                        f" expected ({e}): leave {name} out") from e
    report(made[-1])
  return made


def _fetch(package: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads and unpacks a package."""
  if not (shutil.which("apt-get") and shutil.which("dpkg")):
    raise UserError("this needs apt-get and dpkg: run it on Debian or Ubuntu,"
                    " or give --unpacked")
  root = folder / package
  for command in (["apt-get", "download", "-q", package],
                  ["dpkg", "-x", "", str(root)]):
    if command[0] == "dpkg":
      command[2] = str(next(folder.glob("*.deb")))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                          check=False)
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
      raise UserError(f"cannot get Debian package {package} ({reason}): run"
                      " apt-get update, or leave it out")
  return root


def _write(path: pathlib.Path, documents: Iterable[tuple[str, str]]) -> Made:
  lines, size = [], 0
  for name, text in documents:
    text = text.strip()
    if len(text) < _MIN_CHARACTERS:
      continue
    lines.append(json.dumps({"id": name, "text": text}, ensure_ascii=False))
    size += len(text.encode("utf-8", "replace"))
  if not lines:
    raise ValueError("it has no text")
  data = ("\n".join(lines) + "\n").encode("utf-8", "replace")
  store.write_atomic(path, data)
  return Made(path.stem, len(lines), size)
