"""Checkpoints that describe themselves: orbax arrays plus our own checksums.

    workdir/checkpoints/step_00000100/
      arrays/params, arrays/optimizer   orbax; restore on any mesh
      description.json                  model, vocabulary, stage, config, step,
                                        data position, metrics, array shapes
      <vocabulary file>                 copied in
      checksums.json                    SHA-256 of every file above

Everything downstream takes just the folder: `load("runs/tiny").params`.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import threading
from typing import Any
import warnings

import jax

from lm import paths
from lm.train import agree
from lm.train import arrays
from lm.train import files
from lm.train import loading
from lm.train.loading import Loaded, find, load
from lm.types import TrainState, UserError

__all__ = ("Checkpointer", "Loaded", "find", "load")

_DISK = ("space left", "exhausted", "quota", "file too large", "read-only",
         "permission", "error writing", "input/output error")
# What orbax and tensorstore say of a bucket that does not take something.
_BUCKET = ("http response", "gs://", "gcs", "storage", "unauthenticated",
           "denied", "unavailable", "googleapis", "curl")


class Checkpointer:
  """Saves and restores the checkpoints of one run.

  Not safe for two runs at once in one folder.
  """

  def __init__(
      self, folder: str | os.PathLike, *, description: dict[str, Any],
      vocab_file: str | os.PathLike | None = None, keep_last: int = 2,
      keep_best: int = 0, best: str = "eval/bits_per_byte",
      largest: bool = False,
  ):
    """Makes the folder and removes what a killed save left in it.

    Args:
      folder: the working folder, which may be a `gs://` path; checkpoints lie
        in `folder/checkpoints`.
      description: stored with every checkpoint; `model` and the `hash` of
        `vocab` must be the same when it is restored.
      vocab_file: copied into every checkpoint.
      keep_last: how many of the newest checkpoints to keep.
      keep_best: how many of the best to keep besides.
      best: the metric that decides.
      largest: whether the largest of it is the best, not the smallest.
    """
    if keep_last < 1:
      raise UserError("keep_last must be at least 1: the newest checkpoint is"
                      " what a run resumes from")
    self.folder = paths.absolute(folder) / loading.FOLDER
    self._description = {**description,
                         "best": {"metric": best, "largest": largest}}
    self._vocab_file = paths.path(vocab_file) if vocab_file else None
    self._keep_last, self._keep_best = keep_last, keep_best
    self._bad: set[int] = set()
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._orbax = None
    self.last_step: int | None = None  # The newest good one that we know of.
    paths.make(self.folder)
    if jax.process_index() == 0:
      files.clean(self.folder)

  @property
  def last_path(self) -> pathlib.Path | None:
    """The newest checkpoint known to be good."""
    return (None if self.last_step is None
            else files.step_folder(self.folder, self.last_step))

  def save(
      self, step: int, state: TrainState,
      source_state: dict[str, Any] | None = None,
      metrics: dict[str, float] | None = None, *, wait: bool = False,
  ) -> None:
    """Copies the state to the host and writes it in the background.

    The state may be donated as soon as this returns. A save still being
    written is waited for.

    Args:
      step: the step that it is named after.
      state: what to save.
      source_state: the data's position, JSON.
      metrics: recent ones; `keep_best` looks at them.
      wait: return only when it is on the disk.

    Raises:
      UserError: this save or the one before could not be written; what was
        written earlier is still good.
    """
    self.wait()
    temp = files.temporary(self.folder, step)
    trees = arrays.to_trees(state)
    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    description = {
        **self._description, "format_version": files.FORMAT_VERSION,
        "step": step, "source": source_state or {}, "metrics": metrics,
        "arrays": {k: arrays.shapes(v) for k, v in trees.items()}}
    with _DiskErrors(temp, self.folder, self.last_step):
      agree.first("save/begin", lambda: self._begin(step, description, trees))
      orbax = arrays.orbax_module()
      if self._orbax is None:
        self._orbax = arrays.checkpointer()
      self._orbax.save(temp / arrays.FOLDER, args=orbax.args.Composite(
          **{k: orbax.args.StandardSave(v) for k, v in trees.items()}))
    self._thread = threading.Thread(
        target=self._finish, args=(step, temp), name=f"checkpoint {step}",
        daemon=True)  # `join` waits; a lost host must not hold up the exit.
    self._thread.start()
    if wait:
      self.wait()

  def _begin(self, step: int, description: dict[str, Any],
             trees: dict[str, Any]) -> None:
    """Writes all but the arrays and the checksums."""
    temp = files.begin(self.folder, step)
    if not paths.is_remote(temp):
      _check_space(temp, trees)
    if self._vocab_file:
      name = self._vocab_file.name
      paths.copy(self._vocab_file, temp / name)
      vocab = {**description.get("vocab", {}), "file": name}
      description["vocab"] = vocab
    files.write_json(temp / files.DESCRIPTION, description)

  def wait(self) -> None:
    """Waits for a save that is being written; raises if it failed."""
    self.join()
    self.poll()

  def join(self, timeout: float | None = None) -> None:
    """As `wait`, but leaves an error for the next `poll`.

    Args:
      timeout: seconds to wait at most; what is not saved then never was.
    """
    if self._thread is not None:
      self._thread.join(timeout)
      self._thread = None

  def poll(self) -> None:
    """Raises if a save failed in the background; does not wait."""
    error, self._error = self._error, None
    if error is not None:
      raise error

  def restore(
      self, like: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest good checkpoint, laid out like `like`; None if there is none.

    Args:
      like: an initial state, or its `jax.eval_shape` under the mesh.

    Returns:
      The state and the data's position.

    Raises:
      UserError: there are checkpoints but none is good, or they belong to
        another model, vocabulary or optimizer.
    """
    self.wait()
    found = loading.good(self.folder)
    if found is None:
      return None
    path, description, damaged = found
    self._bad.update(damaged)
    self._check(path, description)
    trees = arrays.to_trees(like)
    arrays.check(path, description, trees)
    state = arrays.from_trees(like, arrays.read(path, trees))
    self.last_step = description["step"]
    return state, description["source"]

  def _check(self, path: pathlib.Path, description: dict[str, Any]) -> None:
    """Refuses a checkpoint of another model or vocabulary."""
    as_json = json.loads(json.dumps(self._description, default=str))
    ours, theirs = (d.get("model") or {} for d in (as_json, description))
    for key in sorted({*ours, *theirs} - {"remat", "unroll", "dtype"}):
      a, b = ours.get(key), theirs.get(key)
      if (a or None) != (b or None):  # A field newer than it is absent there.
        raise UserError(
            f"{path} holds a model with {key}={b!r} but the config says {a!r}:"
            " use another --workdir, or the config that it was trained with")
    a, b = ((d.get("vocab") or {}).get("hash") for d in
            (self._description, description))
    if a != b:
      raise UserError(
          f"{path} was trained with another vocabulary (hash {b}, now {a}): use"
          " its own vocabulary, or another --workdir")

  def _finish(self, step: int, temp: pathlib.Path) -> None:
    """In a thread: waits for orbax, commits, prunes."""
    try:
      with _DiskErrors(temp, self.folder, self.last_step):
        self._orbax.wait_until_finished()
        files.commit(self.folder, step)
      self._bad.discard(step)
      self.last_step = step
      if jax.process_index() == 0:
        self._prune()
    except BaseException as e:  # Raised again by `poll` in the main thread.
      self._error, self._orbax = e, None

  def _prune(self) -> None:
    """Deletes all but the last and the best; what cannot be stays."""
    try:
      self._delete_old()
    except (UserError, OSError) as e:
      warnings.warn(f"could not delete old checkpoints, the run goes on: {e}",
                    stacklevel=2)

  def _delete_old(self) -> None:
    steps = [s for s in files.steps(self.folder) if s not in self._bad]
    keep = set(steps[-self._keep_last:])
    if self._keep_best:
      best = loading.ranked(self.folder, steps)[:self._keep_best]
      keep.update(step for step, _ in best)
    for step in steps:
      if step not in keep:
        files.remove(self.folder, step)


@dataclasses.dataclass
class _DiskErrors:
  """Turns a failed write into one line and removes the unfinished folder."""

  temp: pathlib.Path
  folder: pathlib.Path
  last_step: int | None

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if error is None or isinstance(error, agree.Lost):
      return
    remote = paths.is_remote(self.folder)
    if not remote or jax.process_index() == 0:
      with contextlib.suppress(UserError):  # Else the next run removes it.
        # In a bucket it may be whole already, for it is written in its place.
        if not (remote and paths.is_file(self.temp / files.CHECKSUMS)):
          paths.remove_tree(self.temp)
    text = str(error)
    known = isinstance(error, OSError) or any(
        word in text.lower() for word in (_BUCKET if remote else _DISK))
    refused = isinstance(error, paths.StorageError)
    if isinstance(error, UserError) and not refused or (
        not known and not refused):
      return
    last = self._last()
    last = (f"the last good checkpoint is step {last}" if last is not None
            else "there is no earlier checkpoint")
    step = int(self.temp.name.split("_")[1])
    what = f"could not write the checkpoint of step {step} to {self.folder}: "
    if remote:
      reason = text if refused else paths.explain(self.temp, error)
      raise UserError(f"{what}{last}. {reason}") from error
    raise UserError(f"{what}{_reason(error)}; {last}. Free some space, then"
                    " run the same command again") from error

  def _last(self) -> int | None:
    """The newest checkpoint; a bucket that refuses may not even say that."""
    try:
      return max(files.steps(self.folder), default=None)
    except UserError:
      return self.last_step


def _check_space(folder: pathlib.Path, trees: dict[str, Any]) -> None:
  """Fails before a byte is written where most surely not all would fit."""
  need = sum(x.nbytes for x in jax.tree.leaves(trees)) * 0.85  # Compressed.
  if shutil.disk_usage(folder).free < need:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _reason(error: BaseException) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = " ".join(str(error).split())
  for known in ("No space left on device", "File too large",
                "Disk quota exceeded", "Permission denied"):
    if known.lower() in text.lower():
      return known
  return text[:200]
