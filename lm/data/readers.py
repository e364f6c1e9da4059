"""Readers: rows of fixed length out of prepared data, by random access.

A reader has `num_rows`, `num_tokens` (real tokens in all rows), `length`,
`extra` (names of its further arrays), `digest`, and `gather(rows) -> arrays`,
[rows, length] each: tokens, targets, weights, segments (0 is padding),
positions, and the extra ones.
"""

from collections.abc import Sequence
import hashlib
from typing import Any

import numpy as np

from lm.data import packing, store

Arrays = dict[str, np.ndarray]
# Example data above this many tokens stays on disk (20 bytes a token, else).
IN_MEMORY = 100_000_000


class Windows:
  """Rows cut from the flat token stream; no token is lost.

  Row r predicts tokens [r L, (r + 1) L) of the stream, each from the one before
  it (the first of all from `<|end|>`): every token is a target exactly once.
  """

  extra: Sequence[str] = ()

  def __init__(self, manifest: store.Manifest, length: int, separate: bool):
    self.length = length
    self.num_tokens = manifest.counts["tokens"]
    self.num_rows = -(-self.num_tokens // length)
    self.digest = f"{manifest.digest}:{length}:{separate}"
    # Vocabularies of other people may have no end; then it is never found.
    self._eos = manifest.vocab["eos_id"]
    self._first = max(0, self._eos or 0)
    self._separate = separate
    kept = [(path, f["tokens"]) for path, f in
            zip(manifest.paths, manifest.files, strict=True) if f["tokens"]]
    self._files = [np.memmap(p, manifest.dtype, "r") for p, _ in kept]
    self._ends = np.cumsum([n for _, n in kept])

  def gather(self, rows: np.ndarray) -> Arrays:
    length = self.length
    stream = np.zeros((len(rows), length + 1), np.int32)
    count = np.minimum(length, self.num_tokens - rows * length)
    for i, start in enumerate((rows * length).tolist()):
      if start:
        self._read(start - 1, stream[i, : count[i] + 1])
      else:
        stream[i, 0] = self._first
        self._read(0, stream[i, 1 : count[i] + 1])
    tokens = np.ascontiguousarray(stream[:, :-1])
    where = np.arange(length, dtype=np.int32)
    real = where < count[:, None]
    segments = real.astype(np.int32)
    positions = np.where(real, where, 0)
    if self._separate:
      starts = (tokens == self._eos) & real
      starts[:, 0] = True
      segments *= np.cumsum(starts, axis=1, dtype=np.int32)
      positions -= np.maximum.accumulate(np.where(starts, where, 0), axis=1)
      positions *= real
    return {"tokens": tokens, "targets": np.ascontiguousarray(stream[:, 1:]),
            "weights": real.astype(np.float32), "segments": segments,
            "positions": positions}

  def _read(self, start: int, out: np.ndarray) -> None:
    """Copies out.size tokens of the stream, over file borders if need be."""
    file = int(np.searchsorted(self._ends, start, side="right"))
    done = 0
    while done < out.size:
      data = self._files[file]
      at = start + done - (int(self._ends[file]) - data.size)
      piece = data[at : at + out.size - done]
      out[done : done + piece.size] = piece
      done += piece.size
      file += 1


class Packed:
  """Rows of whole examples, by the stored plan.

  An example keeps all its tokens as inputs; here, and only here, they are
  shifted: target i is token i + 1 with its weight, the last has weight 0.

  Args:
    manifest: of an "examples" folder.
    length: tokens per row.
    too_long: "error", "drop" or "truncate" for longer examples.

  Data of more tokens than `IN_MEMORY` is read from its ArrayRecord files batch
  by batch, and not held in memory.
  """

  def __init__(self, manifest: store.Manifest, length: int, *, too_long: str):
    self.length = length
    self.extra = [f for f in manifest.features if f != "weights"]
    self._records = self._flat = None
    if manifest.counts["tokens"] <= IN_MEMORY:
      sizes, self._flat = self._join(list(store.read_examples(manifest)))
      self._starts = np.cumsum(sizes) - sizes
    else:
      import grain  # pylint: disable=g-import-not-at-top

      sizes = np.fromiter((e["tokens"].size for e in
                           store.read_examples(manifest)), np.int64)
      self._records = grain.sources.ArrayRecordDataSource(
          [str(p) for p, f in zip(manifest.paths, manifest.files, strict=True)
           if f["documents"]])
    self._plan = packing.stored_plan(manifest, sizes, length, too_long=too_long)
    self._sizes = np.minimum(sizes, length)
    self.num_rows = self._plan.num_rows
    self.num_tokens = int(self._sizes[self._plan.examples].sum())
    plan = hashlib.sha256(self._plan.examples.tobytes()).hexdigest()[:8]
    self.digest = f"{manifest.digest}:{length}:{too_long}:{plan}"

  def gather(self, rows: np.ndarray) -> Arrays:
    splits, length = self._plan.row_splits, self.length
    counts = splits[rows + 1] - splits[rows]
    ids = self._plan.examples[_ranges(splits[rows], counts)]
    starts, flat = self._fetch(ids)
    sizes = self._sizes[ids]
    row = np.repeat(np.arange(len(rows)), counts)
    number = _ranges(np.ones(len(rows), np.int64), counts)
    # Where each example begins in its row: tokens before it, less the row's.
    before = np.cumsum(sizes) - sizes
    first = np.cumsum(counts) - counts
    offset = before - np.repeat(before[first], counts)
    source = _ranges(starts, sizes)
    target = _ranges(row * length + offset, sizes)
    last = np.cumsum(sizes) - 1
    ahead = source + 1
    ahead[last] = source[last]  # Nothing follows; its weight is 0.

    def put(values: np.ndarray, dtype: Any) -> np.ndarray:
      out = np.zeros(len(rows) * length, dtype)
      out[target] = values
      return out.reshape(len(rows), length)

    targets, weights = flat["tokens"][ahead], flat["weights"][ahead]
    targets[last], weights[last] = 0, 0
    out = {
        "tokens": put(flat["tokens"][source], np.int32),
        "targets": put(targets, np.int32), "weights": put(weights, np.float32),
        "segments": put(np.repeat(number, sizes), np.int32),
        "positions": put(_ranges(np.zeros_like(sizes), sizes), np.int32)}
    for name in self.extra:
      out[name] = put(flat[name][source], np.float32)
    return out

  def _fetch(self, ids: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """(starts of the examples in, flat arrays by feature)."""
    if self._flat is not None:
      return self._starts[ids], self._flat
    records = self._records.__getitems__(ids.tolist())
    sizes, flat = self._join([store.decode_example(r) for r in records])
    return np.cumsum(sizes) - sizes, flat

  def _join(self, examples: list[Arrays]) -> tuple[np.ndarray, Arrays]:
    """(tokens of each example, their features joined end to end)."""
    sizes = np.array([e["tokens"].size for e in examples], np.int64)
    flat = {"tokens": np.concatenate([e["tokens"] for e in examples]
                                     ).astype(np.int32)}
    for name in ["weights", *self.extra]:
      flat[name] = np.concatenate(
          [e[name] if name in e else np.zeros(e["tokens"].size, np.float32)
           for e in examples])
    return sizes, flat


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
  before = np.cumsum(counts) - counts
  return np.repeat(starts - before, counts) + np.arange(counts.sum())
