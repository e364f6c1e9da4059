"""Packing plans: which examples share a row, decided once for a whole data set.

A plan depends on the examples and the row length only, never on hosts or on the
step, so the rows are the same wherever training runs.
"""

from collections.abc import Sequence
import io
import pathlib
import zipfile

import numpy as np

from lm.data import store
from lm.types import UserError

TOO_LONG = ("error", "drop", "truncate")


class Plan:
  """Rows of whole examples, in compressed form.

  Attributes:
    row_splits: int64 [rows + 1]; row r holds `examples[splits[r]:splits[r+1]]`.
    examples: int64 example numbers in the order of their rows.
    length: tokens per row.
  """

  def __init__(self, row_splits: np.ndarray, examples: np.ndarray, length: int):
    self.row_splits = row_splits
    self.examples = examples
    self.length = length

  @property
  def num_rows(self) -> int:
    return len(self.row_splits) - 1


def best_fit(lengths: Sequence[int], length: int) -> Plan:
  """Puts every example into the fullest row that still has room for it.

  Examples are taken in a fixed random order, so that neighbours in the files
  do not share rows; O(1) each by a bit set of the free spaces.

  Args:
    lengths: tokens of each example, each at most `length`.
    length: tokens per row.
  """
  order = np.random.Generator(np.random.PCG64(0)).permutation(len(lengths))
  rows: list[list[int]] = []
  free: list[list[int]] = [[] for _ in range(length + 1)]  # Rows by space left.
  spaces = 0  # Bit s is set where free[s] is not empty.
  sizes = np.asarray(lengths)[order].tolist()
  for example, size in zip(order.tolist(), sizes, strict=True):
    fitting = spaces >> size
    if fitting:
      space = size + (fitting & -fitting).bit_length() - 1
      row = free[space].pop()
      if not free[space]:
        spaces &= ~(1 << space)
      rows[row].append(example)
    else:
      space, row = length, len(rows)
      rows.append([example])
    if space > size:
      free[space - size].append(row)
      spaces |= 1 << (space - size)
  counts = [len(r) for r in rows]
  return Plan(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
              np.array([e for r in rows for e in r], np.int64), length)


def plan_path(manifest: store.Manifest, length: int, too_long: str):
  return manifest.folder / f"plan-{length}-{too_long}.npz"


def stored_plan(
    manifest: store.Manifest, lengths: np.ndarray, length: int, *,
    too_long: str = "error",
) -> Plan:
  """The folder's plan for this row length, made and stored if there is none.

  Args:
    manifest: of an "examples" folder.
    lengths: tokens of each example.
    length: tokens per row.
    too_long: what to do with examples longer than a row: "error", "drop", or
      "truncate" (keep the beginning).

  Raises:
    UserError: an example is too long, or an unknown `too_long`.
  """
  if too_long not in TOO_LONG:
    raise UserError(f"too_long={too_long!r}: it is one of {TOO_LONG}")
  longer = int((lengths > length).sum())
  if longer and too_long == "error":
    raise UserError(
        f"{longer} of {len(lengths)} examples of {manifest.folder} are longer"
        f" than {length} tokens (the longest has {int(lengths.max())}): raise"
        " the length, or say too_long='drop' or 'truncate'")
  path = plan_path(manifest, length, too_long)
  plan = _load(path, manifest, length)
  if plan is not None:
    return plan
  kept = np.arange(len(lengths))
  if too_long == "drop":
    kept = kept[lengths <= length]
  if not kept.size:
    raise UserError(f"no example of {manifest.folder} fits into {length}"
                    " tokens: raise the length")
  plan = best_fit(np.minimum(lengths[kept], length), length)
  plan.examples = kept[plan.examples]
  out = io.BytesIO()
  np.savez(out, row_splits=plan.row_splits, examples=plan.examples,
           digest=np.array(manifest.digest), length=np.array(length))
  try:
    store.write_atomic(path, out.getvalue())
  except OSError:
    pass  # A read-only folder: every host makes the same plan for itself.
  return plan


def _load(path: pathlib.Path, manifest: store.Manifest, length: int):
  try:
    with np.load(path) as z:
      if str(z["digest"]) == manifest.digest and int(z["length"]) == length:
        return Plan(z["row_splits"], z["examples"], length)
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
    pass  # None, torn or foreign: it can be made again.
  return None
