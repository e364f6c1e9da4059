"""Prepared data on disk: flat token files, example files, manifest, plans.

A prepared folder holds `manifest.json` and one file per shard: `*.tokens`, the
token ids of all documents one after the other (uint16 or uint32, each document
ended by `<|end|>`), or `*.array_record`, one example per record. Everything is
written under another name and renamed, so what exists is whole. A folder in a
bucket (`gs://`) is read by way of a copy in the cache.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import struct
from typing import Any

import numpy as np

from lm import paths
from lm.data import mirror
from lm.types import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FEATURES = ("weights", "values", "value_weights")
_HEADER = struct.Struct("<IHH")  # tokens, bytes per token, bits of FEATURES.
_ARRAY_RECORD = "group_size:1"  # What grain's random access wants.


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What `manifest.json` says.

  Attributes:
    kind: "tokens" or "examples".
    name: the task.
    source: where the data came from, for people.
    vocab: {"hash", "size", "eos_id"}.
    counts: documents, tokens, trained_tokens (weight > 0), text_bytes (UTF-8
      bytes of the tokens' text, 0 if unknown), longest (tokens).
    features: of `FEATURES`, those that any example has.
    files: [{"name", "size", "sha256", "documents", "tokens"}].
    job: digest of what was asked for; the same job is not done twice.
    folder: where it lies (not stored).
  """

  kind: str
  name: str
  source: dict[str, Any]
  vocab: dict[str, Any]
  counts: dict[str, int]
  features: list[str]
  files: list[dict[str, Any]]
  job: str
  format_version: int = FORMAT_VERSION
  folder: pathlib.Path = dataclasses.field(default=pathlib.Path(),
                                           compare=False)

  @property
  def digest(self) -> str:
    """Sixteen hex digits that change with any byte of the data."""
    parts = [self.kind, *(f["sha256"] for f in self.files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

  @property
  def dtype(self) -> np.dtype:
    return token_dtype(self.vocab["size"])

  @property
  def paths(self) -> list[pathlib.Path]:
    return [self.folder / f["name"] for f in self.files]

  def save(self) -> None:
    fields = dataclasses.asdict(self)
    del fields["folder"]
    write_atomic(self.folder / MANIFEST,
                 json.dumps(fields, indent=1, sort_keys=True).encode())


def token_dtype(vocab_size: int) -> np.dtype:
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


write_atomic = paths.write_bytes  # A whole file or nothing.
checksum = paths.sha256


def open_folder(
    folder: str | os.PathLike, kind: str, *, verify: bool = True,
    vocab_hash: str | None = None,
) -> Manifest:
  """Reads and checks a prepared folder.

  One in a bucket is copied into the cache, and read from there.

  Args:
    folder: what `prepare` wrote.
    kind: "tokens" or "examples".
    verify: whether to read every file and compare checksums (about 1 GB/s);
      otherwise existence and size only.
    vocab_hash: the vocabulary that the data must be in, if given.

  Raises:
    UserError: no, unfinished, foreign or changed data; other vocabulary.
  """
  root: Any = paths.path(folder)
  path = root / MANIFEST
  try:
    raw = paths.read_bytes(path)
    manifest = Manifest(**json.loads(raw), folder=root)
  except paths.StorageError:
    raise
  except OSError as e:
    raise UserError(f"{folder} holds no prepared data ({MANIFEST} is missing):"
                    " run prepare again to finish it") from e
  except (ValueError, TypeError) as e:
    raise UserError(f"{path} is not a manifest of prepared data: delete the"
                    " folder and prepare it again") from e
  if manifest.format_version != FORMAT_VERSION:
    raise UserError(f"{path} has format {manifest.format_version}, this code"
                    f" reads {FORMAT_VERSION}: prepare the data again")
  if manifest.kind != kind:
    raise UserError(f"{folder} holds {manifest.kind}, not {kind}: read it with"
                    f" {'windows' if manifest.kind == 'tokens' else 'packed'}")
  if vocab_hash is not None and manifest.vocab["hash"] != vocab_hash:
    raise UserError(f"{folder} was prepared with vocabulary"
                    f" {manifest.vocab['hash']}, not {vocab_hash}: prepare it"
                    " again with this one")
  if paths.is_remote(root):
    local = mirror.fetch(root, raw, MANIFEST, manifest.files, verify=verify)
    manifest = dataclasses.replace(manifest, folder=local)
  else:
    _check_files(manifest, verify)
  if not manifest.counts["tokens"]:
    raise UserError(f"{folder} holds no token: its source was empty")
  return manifest


def _check_files(manifest: Manifest, verify: bool) -> None:
  for file, entry in zip(manifest.paths, manifest.files, strict=True):
    if not file.is_file():
      raise mirror.missing(file)
    if file.stat().st_size != entry["size"] or (
        verify and checksum(file) != entry["sha256"]):
      raise mirror.changed(file)


def encode_example(example: Mapping[str, Any], dtype: np.dtype) -> bytes:
  """One record: header, tokens, then those features that are given."""
  tokens = np.asarray(example["tokens"]).astype(dtype)
  bits, parts = 0, [tokens.tobytes()]
  for i, feature in enumerate(FEATURES):
    value = example.get(feature)
    if value is None:
      continue
    value = np.asarray(value, "<f4")
    if value.shape != tokens.shape:
      raise UserError(f"an example has {len(tokens)} tokens but"
                      f" {value.size} {feature}: give one for each token")
    if feature == "weights" and (value == 1).all():
      continue
    bits |= 1 << i
    parts.append(value.tobytes())
  return _HEADER.pack(len(tokens), dtype.itemsize, bits) + b"".join(parts)


def decode_example(record: bytes) -> dict[str, np.ndarray]:
  """The inverse of `encode_example`; weights that were left out are 1."""
  length, width, bits = _HEADER.unpack_from(record)
  offset = _HEADER.size
  example = {"tokens": np.frombuffer(record, f"<u{width}", length, offset)}
  offset += length * width
  for i, feature in enumerate(FEATURES):
    if bits >> i & 1:
      example[feature] = np.frombuffer(record, "<f4", length, offset)
      offset += 4 * length
  example.setdefault("weights", np.ones(length, np.float32))
  return example


def write_shard(
    path: pathlib.Path, kind: str, examples: Iterable[Mapping[str, Any]],
    *, vocab_size: int,
) -> dict[str, Any]:
  """Writes one shard atomically.

  Args:
    path: the file.
    kind: "tokens" or "examples".
    examples: dicts with `tokens` [n] and, optionally, float `FEATURES` [n]
      and `text_bytes`. Empty ones are skipped.
    vocab_size: all tokens are below it.

  Returns:
    The file's entry with its counts and features.

  Raises:
    UserError: a token outside the vocabulary, features of another length.
  """
  dtype = token_dtype(vocab_size)
  entry = {"name": path.name, "documents": 0, "tokens": 0, "trained_tokens": 0,
           "text_bytes": 0, "longest": 0}
  features = set()

  def records() -> Iterator[bytes]:
    for example in examples:
      tokens = np.asarray(example["tokens"])
      if not tokens.size:
        continue
      if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"token ids {int(tokens.min())} to {int(tokens.max())} in a"
            f" vocabulary of {vocab_size}: prepare with the task's own one")
      weights = example.get("weights")
      entry["documents"] += 1
      entry["tokens"] += tokens.size
      entry["trained_tokens"] += (
          tokens.size if weights is None
          else int(np.count_nonzero(np.asarray(weights))))
      entry["text_bytes"] += int(example.get("text_bytes", 0))
      entry["longest"] = max(entry["longest"], int(tokens.size))
      if kind == "tokens":
        yield tokens.astype(dtype).tobytes()
      else:
        features.update(f for f in FEATURES if example.get(f) is not None)
        yield encode_example(example, dtype)

  partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  if kind == "tokens":
    with open(partial, "wb") as f:
      for record in records():
        f.write(record)
      f.flush()
      os.fsync(f.fileno())
  else:
    from array_record.python import array_record_module  # pylint: disable=g-import-not-at-top
    writer = array_record_module.ArrayRecordWriter(str(partial), _ARRAY_RECORD)
    for record in records():
      writer.write(record)
    writer.close()
  entry["size"] = partial.stat().st_size
  entry["sha256"] = checksum(partial)
  entry["features"] = sorted(features)
  os.replace(partial, path)
  return entry


def read_examples(manifest: Manifest) -> Iterator[dict[str, np.ndarray]]:
  """All examples of an "examples" folder, in order."""
  from array_record.python import array_record_module  # pylint: disable=g-import-not-at-top

  for path, entry in zip(manifest.paths, manifest.files, strict=True):
    if not entry["documents"]:
      continue
    reader = array_record_module.ArrayRecordReader(str(path))
    for record in reader.read_all():
      yield decode_example(record)
    reader.close()


def read_documents(manifest: Manifest) -> Iterator[np.ndarray]:
  """All documents of a "tokens" folder, each with its `<|end|>`, in order."""
  for path in manifest.paths:
    flat = np.fromfile(path, manifest.dtype)
    ends = np.flatnonzero(flat == manifest.vocab["eos_id"]) + 1
    if not ends.size or ends[-1] != flat.size:
      ends = np.append(ends, flat.size)
    start = 0
    for end in ends:
      if end > start:
        yield flat[start:end]
      start = end
