"""Reading a checkpoint from just its folder: model, parameters, vocabulary."""

import dataclasses
import os
import pathlib
from typing import Any
import warnings

import jax

from lm import paths
from lm.train import agree
from lm.train import arrays
from lm.train import files
from lm.train.files import CheckpointError
from lm.types import Params, UserError

FOLDER = "checkpoints"
_NOT_NEEDED = f"{arrays.FOLDER}/{arrays.OPTIMIZER}"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint ready for use.

  Attributes:
    config: the model's `ModelConfig`.
    params: float32, whatever they are stored as, laid out on the mesh.
    vocab: the vocabulary, or None if none was saved.
    description: everything in description.json.
    step: the training step.
    path: the checkpoint's own folder.
  """

  config: Any
  params: Params
  vocab: Any
  description: dict[str, Any]
  step: int
  path: pathlib.Path


def load(
    folder: str | os.PathLike, *, mesh: jax.sharding.Mesh | None = None,
    step: int | None = None, which: str = "last",
) -> Loaded:
  """Reads model, parameters and vocabulary from a folder, and only that.

  Args:
    folder: a working folder, its checkpoints folder, or one checkpoint.
    mesh: where to lay the parameters out; by default the mesh that is set;
      without one they lie whole on the first device.
    step: a certain step; by default what `which` says.
    which: `last` (the newest good one) or `best` (by the metric that the run
      kept the best of).

  Raises:
    UserError: there is no checkpoint, or none is good; the file is named.
  """
  from lm import model
  path, description = find(folder, step=step, which=which)
  config = model.ModelConfig.from_dict(description["model"])
  mesh = mesh or jax.sharding.get_mesh()
  init, key = model.LanguageModel(config).init, jax.random.key(0)
  if mesh.empty:
    like = jax.eval_shape(init, key)
  else:
    with jax.set_mesh(mesh):
      like = jax.eval_shape(init, key)
  trees = {arrays.PARAMS: like}
  arrays.check(path, description, trees, cast=True)
  params = arrays.read(path, trees, mesh=mesh)[arrays.PARAMS]
  return Loaded(config, params, _load_vocab(path, description), description,
                description["step"], path)


def find(
    folder: str | os.PathLike, *, step: int | None = None, which: str = "last"
) -> tuple[pathlib.Path, dict[str, Any]]:
  """A good checkpoint's folder and description; arguments as for `load`.

  With several processes all call it, and all find the same one.
  """
  whole: Any = paths.absolute(folder)
  # What lies there is for process 0 to say: it may change while others look.
  inner, step = agree.first("find", lambda: _choose(whole, step, which))
  root = whole / inner if inner else whole
  if step is not None:
    path = files.step_folder(root, step)
  elif inner is None:
    path = whole
  else:
    found = good(root, skip=_NOT_NEEDED)
    if found is None:
      raise _none(whole)
    return found[:2]
  return path, files.verify(path, skip=_NOT_NEEDED)


def _choose(folder: pathlib.Path, step: int | None, which: str
            ) -> tuple[str | None, int | None]:
  """Where in `folder` checkpoints lie (None: it is one), and which to take.

  No step means the newest good one.
  """
  if paths.is_file(folder / files.DESCRIPTION) or paths.is_file(
      folder / files.CHECKSUMS):
    return None, None
  inner = FOLDER if paths.is_dir(folder / FOLDER) else ""
  root = folder / inner if inner else folder
  steps = files.steps(root)
  if not steps:
    raise _none(folder)
  if which not in ("last", "best"):
    raise UserError(f"which={which!r}: there are 'last' and 'best'")
  if step is None and which == "best":
    order = ranked(root, steps)
    if not order:
      raise UserError(f"no checkpoint in {root} has the metric to rank by: use"
                      " which='last'")
    step = order[0][0]
  elif step is not None and step not in steps:
    raise UserError(f"no checkpoint of step {step} in {root}: there are"
                    f" {', '.join(map(str, steps))}")
  return inner, step


def _none(folder: pathlib.Path) -> UserError:
  return UserError(f"no checkpoint in {folder}: give a run's --workdir or one"
                   " of its checkpoints")


def ranked(
    folder: pathlib.Path, steps: list[int]
) -> list[tuple[int, float]]:
  """(step, metric) of the checkpoints that have the metric, best first."""
  found = []
  for step in steps:
    try:
      d = files.read_json(files.step_folder(folder, step) / files.DESCRIPTION)
      value = d["metrics"][d["best"]["metric"]]
      found.append((-value if d["best"]["largest"] else value, -step, value))
    except (CheckpointError, KeyError, TypeError):
      continue
  return [(-s, value) for _, s, value in sorted(found)]


def good(
    folder: pathlib.Path, *, skip: str | None = None
) -> tuple[pathlib.Path, dict[str, Any], list[int]] | None:
  """The newest good checkpoint, and the newer ones that are damaged.

  With several processes all call it, and all find the same one.

  Args:
    folder: of checkpoints.
    skip: a folder inside a checkpoint that is not needed.

  Returns:
    Its folder, its description and the damaged steps, after a warning that
    names the file at fault; None if there is no checkpoint at all.

  Raises:
    UserError: there are some, but none is good.
  """
  faults: dict[int, CheckpointError] = {}
  for step in reversed(agree.first("steps", lambda: files.steps(folder))):
    path = files.step_folder(folder, step)
    try:
      description = files.verify(path, skip=skip)
    except CheckpointError as e:
      faults[step] = e
      continue
    for fault in faults.values():
      warnings.warn(f"{fault}; using {path.name} instead", stacklevel=3)
    return path, description, list(faults)
  if not faults:
    return None
  raise UserError(f"no checkpoint in {folder} is good; the newest:"
                  f" {faults[max(faults)]}. Give another --workdir, or delete"
                  " the folder to begin afresh")


def _load_vocab(path: pathlib.Path, description: dict[str, Any]) -> Any:
  about = description.get("vocab") or {}
  if "file" not in about:
    return None
  from lm.data import vocab
  loaded = vocab.load(path / about["file"])
  if about.get("hash") not in (None, loaded.hash):
    raise UserError(f"{path / about['file']} is not the vocabulary that the"
                    " checkpoint was trained with: their hashes differ")
  return loaded
