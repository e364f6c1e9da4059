"""Prepare: write a task once, after all its preprocessors.

Shards are written by several processes, each atomically; a run that was killed
goes on with the shards that are missing, and the bytes do not depend on how
often that happened or on how many processes there were. Data for a bucket
(`gs://`) is prepared in the cache, then sent there, its manifest last.
"""

from collections.abc import Sequence
import concurrent.futures
import concurrent.futures.process
import hashlib
import json
import multiprocessing
import os
import pathlib
import time
from typing import Any

import numpy as np

from lm import paths
from lm.data import mirror, packing, store
from lm.data.tasks import Task
from lm.types import UserError

# Seconds of work in this process before others are started: that costs some.
_PATIENCE = 4.0
_SUFFIX = {"tokens": ".tokens", "examples": ".array_record"}


def write(
    task: Task, folder: str | os.PathLike, *, processes: int | None = None,
    lengths: Sequence[int] = (), too_long: str = "error",
    overwrite: bool = False,
) -> store.Manifest:
  """Writes a task to `folder`, or finishes or finds what is there.

  Args:
    task: what to write.
    folder: where; made if missing. May be a `gs://` path.
    processes: how many to use; 1 stays in this process, None starts others
      if there is much to do.
    lengths: row lengths to store packing plans for (examples only; other
      lengths are planned when they are first read).
    too_long: for these plans, as in `pipeline.packed`.
    overwrite: whether to replace other data in the folder.

  Returns:
    The manifest; of the local copy, if the folder is in a bucket.

  Raises:
    UserError: other data in the folder, no data at all, or bad rows; a bucket
      that refuses.
  """
  target: Any = paths.path(folder)
  job = hashlib.sha256(json.dumps(
      [store.FORMAT_VERSION, task.name, task.kind, task.vocab.hash, task.key,
       len(task.shards)]).encode()).hexdigest()[:16]
  manifest = _finished(target, task, job, overwrite)
  if manifest is None and paths.is_remote(target):
    manifest = _write_remote(task, target, job, processes)
  elif manifest is None:
    target.mkdir(parents=True, exist_ok=True)
    entries = _write_shards(task, target, job, processes)
    manifest = _finish(task, target, job, entries)
  if task.kind == "examples" and lengths:
    sizes = np.array([e["tokens"].size for e in store.read_examples(manifest)])
    for length in lengths:
      packing.stored_plan(manifest, sizes, length, too_long=too_long)
  return manifest


def _write_remote(task: Task, folder: Any, job: str,
                  processes: int | None) -> store.Manifest:
  """Prepares in the cache, or finds it done there, and sends it."""
  paths.make(folder)  # Before the work: the bucket may not be there.
  local = mirror.place(folder, job)
  made = write(task, local, processes=processes, overwrite=True)
  mirror.send(local, folder, store.MANIFEST, made.files)
  return store.open_folder(folder, task.kind)


def _finished(folder: pathlib.Path, task: Task, job: str, overwrite: bool):
  """The manifest of the same job, if it is done and whole."""
  if not paths.is_file(folder / store.MANIFEST):
    return None
  try:
    manifest = store.open_folder(folder, task.kind)
    if manifest.job == job:
      return manifest
    problem = f"holds other data ({manifest.name}, another source, vocabulary"
    problem += " or option)"
  except paths.StorageError:
    raise
  except UserError as e:
    problem = f"holds damaged data: {e}"
  if not overwrite:
    raise UserError(f"{folder} {problem}: give another folder, delete it, or"
                    " say overwrite")
  if paths.is_remote(folder):
    paths.remove(folder / store.MANIFEST)  # First: the rest is nothing then.
    paths.remove_tree(folder)
    return None
  for path in folder.iterdir():
    if path.suffix in (*_SUFFIX.values(), ".npz", ".json", ".tmp"):
      path.unlink()
  return None


def _write_shards(task: Task, folder: pathlib.Path, job: str,
                  processes: int | None) -> list[dict[str, Any]]:
  """All shards: here at first, by several processes if it takes long."""
  count = len(task.shards)
  start, entries = time.monotonic(), []
  while len(entries) < count and (
      processes == 1 or processes is None and (
          time.monotonic() - start < _PATIENCE or count - len(entries) == 1)):
    entries.append(_write_shard(task, folder, job, len(entries)))
  rest = range(len(entries), count)
  workers = min(processes or os.cpu_count() or 1, len(rest))
  if workers > 1:
    # Spawned, not forked: TensorFlow and jax have threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context) as pool:
      futures = [pool.submit(_write_shard, task, folder, job, i) for i in rest]
      try:
        return entries + [f.result() for f in futures]
      except concurrent.futures.process.BrokenProcessPool:
        pass  # Out of memory, or a script without `if __name__ == "__main__"`.
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
  return entries + [_write_shard(task, folder, job, i) for i in rest]


def _write_shard(task: Task, folder: pathlib.Path, job: str,
                 index: int) -> dict[str, Any]:
  """One shard and its entry, unless both are already there."""
  stem = f"{index:05d}-of-{len(task.shards):05d}"
  note = folder / f"{stem}.json"
  try:
    entry = json.loads(note.read_text())
    path = folder / entry["name"]
    if entry.pop("job") == job and store.checksum(path) == entry["sha256"]:
      return entry
  except (OSError, ValueError, KeyError):
    pass  # Not there yet, or not whole: write it.
  entry = store.write_shard(
      folder / (stem + _SUFFIX[task.kind]), task.kind, task.examples(index),
      vocab_size=task.vocab.size)
  store.write_atomic(note, json.dumps({**entry, "job": job}).encode())
  return entry


def _finish(task: Task, folder: pathlib.Path, job: str,
            entries: list[dict[str, Any]]) -> store.Manifest:
  """Writes the manifest, then removes the shards' notes and torn files."""
  total = lambda key: sum(e[key] for e in entries)
  if not total("tokens"):
    raise UserError(f"task {task.name} has no data: {task.source}")
  manifest = store.Manifest(
      kind=task.kind, name=task.name, source=dict(task.source), job=job,
      vocab={"hash": task.vocab.hash, "size": task.vocab.size,
             "eos_id": task.vocab.eos_id},
      counts={**{k: total(k) for k in ("documents", "tokens", "trained_tokens",
                                       "text_bytes")},
              "longest": max(e["longest"] for e in entries)},
      features=sorted({f for e in entries for f in e["features"]}),
      files=[{k: e[k] for k in ("name", "size", "sha256", "documents",
                                "tokens")} for e in entries],
      folder=folder)
  manifest.save()
  for i in range(len(entries)):
    (folder / f"{i:05d}-of-{len(entries):05d}.json").unlink(missing_ok=True)
  for path in folder.glob("*.tmp"):
    path.unlink(missing_ok=True)
  return manifest
