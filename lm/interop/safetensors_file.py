"""The safetensors format, read and written one tensor at a time.

A file is the length of its header (8 bytes, little endian), the header in JSON
(for each tensor its type, shape and place), and the bytes. Each tensor is
mapped into memory on its own, so that its pages go when it goes; nothing that
the header says is believed without a look.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from collections.abc import Callable, Iterable, Sequence
import json
import math
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from lm.types import UserError

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST = 100_000_000  # Bytes of a header, as the format says.
_METADATA = "__metadata__"
_WRITE = 16 << 20  # Bytes at a time.


class SafetensorsFile:
  """The tensors of one file; their bytes are read when they are asked for.

  Attributes:
    path: of the file.
    shapes: by name.
    dtypes: by name, as NumPy has them.
    size: of the file, in bytes.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the header.

    Raises:
      UserError: there is no such file, it is cut short, its header lies, or it
        holds a type that is not a float of 16 to 64 bits.
    """
    self.path = pathlib.Path(path)
    header, start, self.size = _header(self.path)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, np.dtype] = {}
    self._places: dict[str, int] = {}
    parts = []
    for name, about in header.items():
      if name == _METADATA:
        continue
      dtype, shape, first, last = self._entry(name, about)
      self.shapes[name], self.dtypes[name] = shape, dtype
      self._places[name] = start + first
      parts.append((first, last, name))
    self._check_places(sorted(parts), self.size - start)

  def read(self, name: str) -> np.ndarray:
    """A tensor as a read-only view of the file."""
    shape, dtype = self.shapes[name], self.dtypes[name]
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    try:
      # One mapping each: its pages count as ours only while it is used.
      return np.memmap(self.path, dtype, "r", self._places[name], shape)
    except (OSError, ValueError) as e:
      raise UserError(f"{self.path} cannot be read any more: {e}") from e

  def _entry(self, name: str, about: Any):
    """Type, shape, first and last byte of a tensor, if they agree."""
    fault = f"{self.path}: the header's entry of tensor {name!r}"
    if not isinstance(about, dict) or set(about) != {
        "dtype", "shape", "data_offsets"}:
      raise UserError(f"{fault} is not dtype, shape and data_offsets: the file"
                      " is damaged")
    shape, places = about["shape"], about["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(places) or len(places) != 2:
      raise UserError(f"{fault} has a shape or offsets that are no sizes: the"
                      " file is damaged")
    dtype = (DTYPES.get(about["dtype"]) if isinstance(about["dtype"], str)
             else None)
    if dtype is None:
      raise UserError(
          f"{self.path}: tensor {name!r} has the type {about['dtype']!r}: only"
          f" {', '.join(DTYPES)} are read; get the model in one of these")
    first, last = places
    if last - first != math.prod(shape) * dtype.itemsize:
      raise UserError(f"{fault} gives {last - first} bytes to shape {shape} of"
                      f" {about['dtype']}: the file is damaged")
    return dtype, tuple(shape), first, last

  def _check_places(self, parts: list[tuple[int, int, str]], size: int):
    """Every byte of the file belongs to one tensor."""
    end = 0
    for first, last, name in parts:
      if first != end:
        what = "overlaps another" if first < end else "leaves a gap before it"
        raise UserError(f"{self.path}: tensor {name!r} {what}: the file is"
                        " damaged")
      end = last
      if end > size:
        raise UserError(f"{self.path}: tensor {name!r} ends at byte {end} of"
                        f" {size}: the file is cut short; fetch it again")
    if end != size:
      raise UserError(f"{self.path}: {size - end} bytes at the end belong to no"
                      " tensor: the file is damaged")


def _are_sizes(values: Any) -> bool:
  return isinstance(values, list) and all(
      type(v) is int and 0 <= v < 1 << 62 for v in values)


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int, int]:
  """The header, where the bytes begin, and the size of the file."""
  try:
    with open(path, "rb") as f:
      size = os.fstat(f.fileno()).st_size
      start = f.read(8)
      length = int.from_bytes(start, "little")
      if len(start) < 8 or 8 + length > size:
        raise UserError(f"{path} is cut short, or not a safetensors file: its"
                        f" header of {length} bytes ends after its {size}")
      if length > _LONGEST:
        raise UserError(f"{path}: a header of {length} bytes; more than"
                        f" {_LONGEST} are not read")
      raw = f.read(length)
  except FileNotFoundError as e:
    raise UserError(f"{path} is missing: fetch the whole model") from e
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror}") from e
  try:
    header = json.loads(raw.decode(), object_pairs_hook=_once)
  except _Twice as e:
    raise UserError(f"{path}: its header names {e} twice: the file is damaged"
                    ) from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path}: its header is not JSON: the file is damaged, or"
                    " not a safetensors file") from e
  if not isinstance(header, dict):
    raise UserError(f"{path}: its header is not a list of tensors")
  return header, 8 + length, size


class _Twice(Exception):
  """A key that stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in pairs:
    if key in found:
      raise _Twice(repr(key))
    found[key] = value
  return found


def write(
    path: str | os.PathLike,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    fetch: Callable[[str], np.ndarray], *, dtype: np.dtype,
) -> None:
  """Writes tensors one by one, atomically; it is on the disk when it returns.

  Args:
    path: the file; an old one is replaced.
    tensors: names and shapes, in the order of the file.
    fetch: gives a tensor, which is cast to `dtype`; each is asked for once.
    dtype: of all.

  Raises:
    UserError: a number is too large for `dtype`.
    OSError: of the disk.
  """
  dtype, final, end = np.dtype(dtype), pathlib.Path(path), 0
  # transformers asks for the metadata.
  header: dict[str, Any] = {_METADATA: {"format": "pt"}}
  for name, shape in tensors:
    first, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {"dtype": _NAMES[dtype], "shape": list(shape),
                    "data_offsets": [first, end]}
  raw = json.dumps(header, separators=(",", ":")).encode()
  raw += b" " * (-len(raw) % 8)  # The bytes begin at a multiple of eight.
  partial = final.with_name(f"{final.name}.{os.getpid()}.tmp")
  try:
    with open(partial, "wb") as f:
      f.write(len(raw).to_bytes(8, "little") + raw)
      for name, shape in tensors:
        f.writelines(_bytes(fetch(name), name, shape, dtype))
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, final)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def _bytes(tensor: np.ndarray, name: str, shape: tuple[int, ...],
           dtype: np.dtype) -> Iterable[memoryview]:
  """A tensor's bytes in `dtype`, in parts."""
  if tensor.shape != shape:
    raise ValueError(f"{name}: {tensor.shape} is not {shape}")
  flat = np.ascontiguousarray(tensor).reshape(-1)
  for i in range(0, flat.size, _WRITE // dtype.itemsize):
    part = flat[i:i + _WRITE // dtype.itemsize]
    with np.errstate(over="ignore"):
      cast = part.astype(dtype, copy=False)
    if cast is not part and not np.isfinite(
        cast.astype(np.float32, copy=False)).all():
      raise UserError(f"tensor {name!r} has numbers that {dtype.name} cannot"
                      " hold: choose another --dtype")
    yield cast.view(np.uint8).data
