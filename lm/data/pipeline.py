"""Batches from prepared data, each a pure function of (seed, step).

`windows` cuts a flat token file into rows, `packed` fills rows with whole
examples, `mix` interleaves several of either. grain gives the order of the
rows; numpy gathers them (`lm.data.readers`). The global batch does not know how
many hosts there are: host p of P reads the p-th of P equal parts of its rows.
Resuming is setting a step.
"""

from collections.abc import Iterator, Sequence
import hashlib
import os
from typing import Any

import numpy as np

from lm.data import store
from lm.data.readers import Packed, Windows
from lm.types import Batch, UserError


class Source:
  """Yields batches; `source(state)` is the next one.

  The numbers of a row: tokens, targets, weights, segments (0 is padding),
  positions; `values` and `value_weights` where the data has them.

  Args:
    parts: readers with `num_rows`, `num_tokens`, `length`, `extra`, `digest`
      and `gather(rows) -> arrays`.
    batch: rows of the global batch, over all hosts.
    seed: of the order, 0 to 2**32 - 1; another seed is another order.
    rates: tokens of each part per token of the whole, any scale.
    shuffle: False keeps the order of the files (one part only).
    process_index: which host this is.
    process_count: how many hosts share the global batch.

  Raises:
    UserError: a batch that hosts cannot share, rates that are not positive.
  """

  def __init__(
      self, parts: Sequence[Any], *, batch: int, seed: int,
      rates: Sequence[float] = (1.0,), shuffle: bool = True,
      process_index: int = 0, process_count: int = 1,
  ):
    if batch < 1 or batch % process_count:
      raise UserError(f"batch {batch} cannot be shared equally by"
                      f" {process_count} hosts: make it a multiple")
    if len(rates) != len(parts) or min(rates) <= 0:
      raise UserError(f"rates {list(rates)}: give one positive number for each"
                      f" of the {len(parts)} sources")
    self.parts = list(parts)
    self.batch = batch
    self.seed = int(seed) % 2**32
    self.rates = [float(r) / sum(rates) for r in rates]
    self.length = parts[0].length
    self.extra = sorted({k for p in parts for k in p.extra})
    self._hosts = (process_index, process_count)
    self._shuffle = shuffle
    self._step = 0
    # A row of part i holds num_tokens/num_rows tokens on average: rates in
    # tokens become shares of rows.
    rows = [r * p.num_rows / p.num_tokens
            for r, p in zip(self.rates, parts, strict=True)]
    self._row_shares = [r / sum(rows) for r in rows]
    self._orders = [
        _order(p.num_rows, (self.seed + 7919 * i) % 2**32) if shuffle
        else range(p.num_rows) for i, p in enumerate(parts)]

  @property
  def epoch_steps(self) -> float:
    """Steps in which the part that lasts longest is seen once."""
    return max(p.num_rows / s for p, s in
               zip(self.parts, self._row_shares, strict=True)) / self.batch

  @property
  def tokens_per_step(self) -> float:
    """Real (not padding) tokens of a global batch, on average."""
    return self.batch * sum(
        s * p.num_tokens / p.num_rows
        for p, s in zip(self.parts, self._row_shares, strict=True))

  def __call__(self, state: Any = None) -> Batch:
    """The next batch; `state` is not looked at (no wait for the device)."""
    del state
    batch = self.batch_at(self._step)
    self._step += 1
    return batch

  def batch_at(self, step: int) -> Batch:
    """This host's rows of the global batch of `step`, as numpy arrays."""
    index, count = self._hosts
    rows = self.batch // count
    first = step * self.batch + index * rows
    part, key = interleave(np.arange(first, first + rows), self._row_shares)
    out = {}
    for i, reader in enumerate(self.parts):
      here = np.flatnonzero(part == i)
      if here.size:
        order = self._orders[i]
        found = reader.gather(_take(order, key[here]))
        if len(here) == rows:
          out = found
          break
        for name, array in found.items():
          if name not in out:
            out[name] = np.zeros((rows, self.length), array.dtype)
          out[name][here] = array
    for name in self.extra:
      out.setdefault(name, np.zeros((rows, self.length), np.float32))
    return Batch(
        tokens_BT=out["tokens"], targets_BT=out["targets"],
        weights_BT=out["weights"], segments_BT=out["segments"],
        positions_BT=out["positions"],
        extra={f"{k}_BT": out[k] for k in self.extra})

  def once(self) -> Iterator[Batch]:
    """All rows of a single-part source once; missing rows are padding."""
    if len(self.parts) > 1:
      raise UserError("a mixture has no end: read its sources one by one")
    for step in range(-(-self.parts[0].num_rows // self.batch)):
      batch = self.batch_at(step)
      rows = len(batch.tokens_BT)
      index = self._hosts[0]
      first = step * self.batch + index * rows
      real = np.arange(first, first + rows) < self.parts[0].num_rows
      if not real.all():
        batch = _blank(batch, real)
      yield batch

  def get_state(self) -> dict[str, Any]:
    """The position: a few JSON values, the same on every host."""
    return {"step": self._step, "seed": self.seed, "batch": self.batch,
            "length": self.length, "data": self.digest}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position that `get_state` gave, on any number of hosts.

    Raises:
      UserError: the position belongs to other data or another batch layout.
    """
    now = self.get_state()
    for key in ("seed", "batch", "length", "data"):
      if state.get(key) != now[key]:
        raise UserError(
            f"cannot resume: the run's data had {key}={state.get(key)}, now it"
            f" is {now[key]}: restore it or start another workdir")
    self._step = int(state["step"])

  @property
  def digest(self) -> str:
    """Changes with the data, the rates and the order."""
    text = [p.digest for p in self.parts] + [f"{r:.9f}" for r in self.rates]
    return hashlib.sha256(
        "\n".join([*text, str(self._shuffle)]).encode()).hexdigest()[:16]


def windows(
    folder: str | os.PathLike, *, length: int, batch: int, seed: int = 0,
    separate: bool = False, shuffle: bool = True, verify: bool = True,
    vocab_hash: str | None = None, process_index: int = 0,
    process_count: int = 1,
) -> Source:
  """Rows of `length` tokens from a flat token folder.

  Args:
    folder: what `prepare.tokens` wrote.
    length: tokens per row.
    batch: rows of the global batch.
    seed: of the order of rows, which differs in each epoch.
    separate: whether documents of a row get segments of their own.
    shuffle: False for the order of the files.
    verify: whether to compare checksums (else sizes only).
    vocab_hash: the vocabulary the data must be in, if given.
    process_index: which host this is.
    process_count: how many hosts there are.

  Raises:
    UserError: the folder is not prepared, changed, or in another vocabulary.
  """
  manifest = store.open_folder(folder, "tokens", verify=verify,
                               vocab_hash=vocab_hash)
  return Source([Windows(manifest, length, separate)], batch=batch, seed=seed,
                shuffle=shuffle, process_index=process_index,
                process_count=process_count)


def packed(
    folder: str | os.PathLike, *, length: int, batch: int, seed: int = 0,
    too_long: str = "error", shuffle: bool = True, verify: bool = True,
    vocab_hash: str | None = None, process_index: int = 0,
    process_count: int = 1,
) -> Source:
  """Rows of whole examples from an example folder; arguments as `windows`.

  Args:
    too_long: examples longer than a row: "error", "drop" or "truncate".

  Raises:
    UserError: as `windows`; also an example that is too long.
  """
  manifest = store.open_folder(folder, "examples", verify=verify,
                               vocab_hash=vocab_hash)
  reader = Packed(manifest, length, too_long=too_long)
  return Source([reader], batch=batch, seed=seed,
                shuffle=shuffle, process_index=process_index,
                process_count=process_count)


def mix(sources: Sequence[Source], rates: Sequence[float]) -> Source:
  """Several sources in one batch; `rates` are shares of tokens, any scale.

  Padding does not count: sparser rows are drawn more often.

  Raises:
    UserError: sources of different length, batch, seed or hosts.
  """
  first = sources[0]
  for s in sources[1:]:
    for what in ("length", "batch", "seed", "_hosts"):
      if getattr(s, what) != getattr(first, what):
        raise UserError(f"cannot mix sources of different {what.strip('_')}:"
                        f" {getattr(first, what)} and {getattr(s, what)}")
  parts = [p for s in sources for p in s.parts]
  shares = [r * q for s, r in zip(sources, rates, strict=True)
            for q in s.rates]
  return Source(parts, batch=first.batch, seed=first.seed, rates=shares,
                process_index=first._hosts[0], process_count=first._hosts[1])


def interleave(index: np.ndarray, shares: Sequence[float]):
  """Which part row `index` of a mixture comes from, and its number there.

  Among the first k rows, part 0 has floor(k share) ones; the rest are dealt to
  the other parts in the same way. So any run of rows keeps the shares.

  Args:
    index: int64 row numbers of the mixture.
    shares: of each part, summing to 1.

  Returns:
    (part, key): int64 arrays like `index`.
  """
  part = np.zeros_like(index)
  key = index.copy()
  open_, rest = np.arange(len(index)), 1.0
  for i, share in enumerate(shares[:-1]):
    p = min(1.0, share / rest)
    k = key[open_]
    mine, next_ = np.floor(k * p), np.floor((k + 1) * p)
    taken = next_ > mine
    key[open_[taken]] = mine[taken].astype(np.int64)
    part[open_[taken]] = i
    open_, k, mine = open_[~taken], k[~taken], mine[~taken]
    key[open_] = k - mine.astype(np.int64)
    rest -= share
  part[open_] = len(shares) - 1
  return part, key


def _order(num_rows: int, seed: int):
  """All rows in a random order, for ever: another order in each epoch."""
  import grain  # pylint: disable=g-import-not-at-top

  return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


def _take(order, keys: np.ndarray) -> np.ndarray:
  if isinstance(order, range):
    return keys % len(order)
  return np.array([order[int(k)] for k in keys], np.int64)


def _blank(batch: Batch, real: np.ndarray) -> Batch:
  """The batch with rows that are not `real` turned into padding."""
  zero = lambda x: x * real[:, None].astype(x.dtype)
  fields = {f: zero(getattr(batch, f)) for f in (
      "tokens_BT", "targets_BT", "weights_BT", "segments_BT", "positions_BT")}
  return Batch(
      **fields, extra={k: zero(v) for k, v in batch.extra.items()})
