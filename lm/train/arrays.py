"""Trees of arrays to and from orbax, by path and on any mesh."""

import logging
import os
import pathlib
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from lm import optim
from lm.train.files import CheckpointError
from lm.types import TrainState, UserError

FOLDER = "arrays"
PARAMS, OPTIMIZER = "params", "optimizer"
_FLOATS = {"float32", "bfloat16"}


def orbax_module():
  """orbax.checkpoint, imported on first use: it is slow to import."""
  import orbax.checkpoint
  return orbax.checkpoint


def checkpointer():
  """An orbax checkpointer of several named trees; saves asynchronously."""
  orbax = orbax_module()
  # Its threads log a page for each error that it raises to us as well.
  absl = logging.getLogger("absl")
  if _not_of_orbax not in absl.filters:
    absl.addFilter(_not_of_orbax)
  return orbax.AsyncCheckpointer(orbax.CompositeCheckpointHandler())


def _not_of_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


def to_trees(state: TrainState) -> dict[str, Any]:
  """The trees that are stored: the optimizer's leaves by path, no structs."""
  leaves = {_key(path): leaf
            for path, leaf in optim.flatten_paths(state.opt_state)
            if hasattr(leaf, "shape")}
  return {PARAMS: state.params, OPTIMIZER: {"step": state.step, **leaves}}


def from_trees(like: TrainState, trees: dict[str, Any]) -> TrainState:
  """The inverse of `to_trees`; `like` has the optimizer's structure."""
  found = trees[OPTIMIZER]
  opt_state = optim.map_paths(
      lambda path, _: found[_key(path)], like.opt_state)
  return TrainState(found["step"], trees[PARAMS], opt_state)


def _key(path: str) -> str:
  return path.replace("/", ".")


def shapes(tree: Any) -> dict[str, list]:
  """Shape and type of each leaf by path, as JSON."""
  return {path: [list(x.shape), str(np.dtype(x.dtype))]
          for path, x in optim.flatten_paths(tree)}


def check(
    path: pathlib.Path, description: dict[str, Any], trees: dict[str, Any], *,
    cast: bool = False,
) -> None:
  """Refuses a checkpoint whose arrays are not those of `trees`.

  Args:
    path: of the checkpoint, for errors.
    description: its own.
    trees: what `read` will be asked for.
    cast: whether floats may be stored as others than are asked for; `read`
      casts them.
  """
  for kind, tree in trees.items():
    stored, wanted = description["arrays"][kind], shapes(tree)
    for name in sorted({*stored, *wanted}):
      a, b = stored.get(name), wanted.get(name)
      if cast and a and b and a[0] == b[0] and {a[1], b[1]} <= _FLOATS:
        continue
      if a != b:
        raise UserError(
            f"{path}: {kind} {name!r} is {a or 'missing'} in the checkpoint but"
            f" {b or 'missing'} by the config: it belongs to another"
            " model or optimizer; use another --workdir")


def read(
    path: pathlib.Path, trees: dict[str, Any], *,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
  """Restores trees laid out like the given ones (arrays or shapes).

  Args:
    path: a checkpoint.
    trees: some of those that were saved, by name.
    mesh: by default the one that is set; without any the first device.
  """
  orbax = orbax_module()
  mesh = jax.sharding.get_mesh() if mesh is None else mesh

  def target(leaf):
    layout = getattr(leaf, "sharding", None)
    if not mesh.empty:
      layout = NamedSharding(mesh, getattr(layout, "spec", None) or P())
    elif layout is None or isinstance(layout, NamedSharding):
      layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

  args = {kind: orbax.args.StandardRestore(jax.tree.map(target, tree))
          for kind, tree in trees.items()}
  try:
    found = checkpointer().restore(
        path / FOLDER, args=orbax.args.Composite(**args))
  except (ValueError, KeyError, OSError) as e:
    reason = " ".join(str(e).split())[:200]
    raise CheckpointError(f"{path / FOLDER} cannot be read: {reason}") from e
  return {kind: found[kind] for kind in trees}
