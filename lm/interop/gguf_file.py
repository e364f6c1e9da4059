"""What stands in a GGUF file: its metadata, and its tensors as float32.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from
anywhere, so no number in one is believed: each count, length and offset is held
against what is left of the file before anything is made of its size.
"""

from collections.abc import Iterable
import dataclasses
import functools
import math
import os
import pathlib
from typing import Any, BinaryIO

import numpy as np

from lm import paths
from lm.types import UserError

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # Unless the file says otherwise.
_STRING, _ARRAY = 8, 9  # Types of metadata values; the others are plain.
_PLAIN = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4",
          7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
# Far above those of real files: millions of tokens, some pages of template.
_MOST_ENTRIES, _MOST_ITEMS, _LONGEST = 1 << 16, 1 << 22, 1 << 24
_MOST_DIMENSIONS = 4
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# Values of one run of dequantization: its temporaries stay in the CPU's cache.
_RUN = 1 << 12


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    type: of its blocks, one of `gguf.GGMLQuantizationType`'s names.
    shape: sizes, the last dimension contiguous (the file names it first).
    offset: its first byte, from the start of the file.
    block: values and bytes of a block.
  """
  type: str
  shape: tuple[int, ...]
  offset: int
  block: tuple[int, int]

  @property
  def num_bytes(self) -> int:
    values, size = self.block
    return math.prod(self.shape) // values * size


@dataclasses.dataclass(frozen=True)
class File:
  """A file's metadata as plain Python values, and its tensors by name."""
  path: pathlib.Path
  fields: dict[str, Any]
  tensors: dict[str, Tensor]

  def read(self, name: str) -> np.ndarray:
    """One tensor in float32, in its shape.

    Raises:
      UserError: the file has changed, or can no longer be read.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize  # 0.1 s.
    tensor = self.tensors[name]
    try:
      raw = np.fromfile(self.path, np.uint8, tensor.num_bytes,
                        offset=tensor.offset)
    except OSError as e:
      raise UserError(f"{self.path} cannot be read: {e.strerror}") from e
    if raw.size != tensor.num_bytes:
      raise UserError(f"{self.path} became shorter while it was read: fetch it"
                      " again")
    # In rows of one run each, as far as the number of blocks divides.
    values, size = tensor.block
    blocks = raw.size // size
    run = math.gcd(blocks, _RUN // values) if blocks else 1
    with np.errstate(all="ignore"):  # Who lays them out looks for infinities.
      found = dequantize(raw.reshape(-1, run * size),
                         GGMLQuantizationType[tensor.type])
    return found.reshape(tensor.shape)


def read_file(path: str | os.PathLike) -> File:
  """Reads all but the tensors' values.

  Raises:
    UserError: no such file, not GGUF, a damaged or hostile one, or tensors of a
      type that is not among those known.
  """
  if paths.is_remote(path):
    raise UserError(f"{path}: copy the GGUF file to a local disk first")
  path = pathlib.Path(path)
  try:
    with open(path, "rb") as f:
      return _read(_Bytes(f, os.fstat(f.fileno()).st_size, path), path)
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e


class _Bytes:
  """Goes forward through a file, never past its end."""

  def __init__(self, f: BinaryIO, size: int, path: pathlib.Path):
    self._f, self.path = f, path
    self.left = self.size = size

  def fault(self, what: str) -> UserError:
    return UserError(f"{self.path} is not a sound GGUF file: {what}; fetch or"
                     " convert it again")

  def take(self, count: int, what: str) -> bytes:
    if count > self.left:
      raise self.fault(f"{what} goes beyond its end")
    raw = self._f.read(count)
    if len(raw) != count:
      raise self.fault(f"it became shorter while {what} was read")
    self.left -= count
    return raw

  def integer(self, what: str, size: int = 8) -> int:
    return int.from_bytes(self.take(size, what), "little")

  def count(self, what: str, *, most: int, each: int) -> int:
    """A number of things, each of which takes at least `each` bytes."""
    count = self.integer(what)
    if count > most or count * each > self.left:
      raise self.fault(f"it claims {count} {what}")
    return count

  def text(self, what: str) -> str:
    length = self.integer(what)
    if length > _LONGEST:
      raise self.fault(f"{what} claims {length} bytes")
    raw = self.take(length, what)
    try:
      return raw.decode("utf-8")
    except UnicodeDecodeError:
      raise self.fault(f"{what} is not UTF-8 text") from None

  def name(self, what: str, taken: Iterable[str]) -> str:
    name = self.text(f"a {what}'s name")
    if not name or len(name) > 256 or not name.isprintable():
      raise self.fault(f"{_short(name)} is no name of a {what}")
    if name in taken:
      raise self.fault(f"it has two of {what} {name}")
    return name


def _read(f: _Bytes, path: pathlib.Path) -> File:
  if f.size < 24 or f.take(4, "the magic number") != b"GGUF":
    raise UserError(f"{path} is not a GGUF file: it does not start with GGUF")
  version = f.integer("the version", 4)
  if version not in _VERSIONS:
    swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
    if swapped in _VERSIONS:
      raise UserError(f"{path} is a big-endian GGUF file: convert the model"
                      " again, little-endian")
    raise UserError(f"{path} is of GGUF version {version}: convert the model to"
                    f" version {_VERSIONS[-1]}")
  num_tensors = f.count("tensors", most=_MOST_ENTRIES, each=24)
  num_fields = f.count("metadata fields", most=_MOST_ENTRIES, each=13)
  fields: dict[str, Any] = {}
  for _ in range(num_fields):
    key = f.name("metadata field", fields)
    fields[key] = _value(f, key)
  alignment = fields.get("general.alignment", _ALIGNMENT)
  if (type(alignment) is not int or not 1 <= alignment <= 1 << 20
      or alignment & (alignment - 1)):
    raise f.fault(f"general.alignment is {_short(alignment)}, not a power of"
                  " two")
  found: dict[str, Tensor] = {}
  for _ in range(num_tensors):
    name = f.name("tensor", found)
    found[name] = _tensor(f, name, alignment)
  start = -(-(f.size - f.left) // alignment) * alignment
  tensors = {name: dataclasses.replace(t, offset=start + t.offset)
             for name, t in found.items()}
  end, before = start, "the metadata"
  for name, t in sorted(tensors.items(), key=lambda x: x[1].offset):
    if t.offset < end:
      raise f.fault(f"tensor {name} overlaps {before}")
    end, before = t.offset + t.num_bytes, f"tensor {name}"
  if end > f.size and tensors:
    raise f.fault(f"{before} goes beyond its end")
  return File(path, fields, tensors)


def _value(f: _Bytes, key: str) -> Any:
  kind = f.integer(key, 4)
  if kind == _STRING:
    return f.text(key)
  if kind != _ARRAY:
    return _numbers(f, key, _plain(f, key, kind), 1)[0]
  kind = f.integer(key, 4)
  if kind == _ARRAY:
    raise f.fault(f"{key} is an array of arrays")
  if kind == _STRING:
    count = f.count(f"values of {key}", most=_MOST_ITEMS, each=8)
    return [f.text(key) for _ in range(count)]
  dtype = _plain(f, key, kind)
  return _numbers(f, key, dtype, f.count(
      f"values of {key}", most=_MOST_ITEMS, each=dtype.itemsize))


def _plain(f: _Bytes, key: str, kind: int) -> np.dtype:
  if kind not in _PLAIN:
    raise f.fault(f"{key} is of type {kind}, which there is not")
  return np.dtype(_PLAIN[kind])


def _numbers(f: _Bytes, key: str, dtype: np.dtype, count: int) -> list:
  return np.frombuffer(f.take(count * dtype.itemsize, key), dtype).tolist()


def _tensor(f: _Bytes, name: str, alignment: int) -> Tensor:
  """One tensor's entry; the offset is still from the start of the values."""
  what = f"tensor {name}"
  rank = f.integer(what, 4)
  if not 1 <= rank <= _MOST_DIMENSIONS:
    raise f.fault(f"{what} claims {rank} dimensions")
  shape = tuple(f.integer(what) for _ in range(rank))[::-1]
  kind = f.integer(what, 4)
  type_, values, size = _types().get(kind, (f"number {kind}", 0, 0))
  if type_ not in _TYPES:
    raise UserError(f"{f.path}: {what} is of type {type_}; known are"
                    f" {', '.join(_TYPES)}: take the model in one of those")
  # No less than two bits a value in any type.
  if min(shape) < 1 or math.prod(shape) > 8 * f.size:
    raise f.fault(f"{what} claims the shape {list(shape)}")
  if shape[-1] % values:
    raise f.fault(f"{what} has rows of {shape[-1]} values in blocks of"
                  f" {values}")
  offset = f.integer(what)
  if offset % alignment:
    raise f.fault(f"{what} begins at byte {offset}, not a multiple of"
                  f" {alignment}")
  return Tensor(type_, shape, offset, (values, size))


@functools.cache
def _types() -> dict[int, tuple[str, int, int]]:
  """Name, values and bytes of a block of every type of tensor."""
  from gguf.constants import GGML_QUANT_SIZES
  return {int(kind): (kind.name, *size)
          for kind, size in GGML_QUANT_SIZES.items()}


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:60] + "..."
