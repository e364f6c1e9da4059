"""One of two processes that save and restore together; see shared_test.py.

Arguments: the folder of the run, a folder for what was found, the port, the
index. Writes `found-INDEX.json`.
"""

import errno
import json
import os
import pathlib
import sys
import warnings

import jax
import numpy as np

from lm import paths
from lm import sharding
from lm import train
from lm.train import agree
from lm.train import files
from lm.types import TrainState, UserError


def state(n):
  """Parameters of which each process holds a half."""
  mesh = jax.sharding.get_mesh()
  half = jax.sharding.NamedSharding(mesh, jax.P("fsdp"))
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  w = np.random.default_rng(n).normal(size=(64, 32)).astype(np.float32)
  put = lambda x, where: jax.make_array_from_callback(
      x.shape, where, lambda i: x[i])
  return TrainState(put(np.int32(n), whole), {"w": put(w, half)},
                    {"m": put(w + 1, half)})


def halves(found):
  """The bytes of what this process holds."""
  return [np.asarray(s.data).tobytes().hex() for x in jax.tree.leaves(found)
          for s in x.addressable_shards]


def run(folder: str) -> dict:
  found = {}
  hashed = []
  original = paths.sha256

  def noted(where, **kwargs):
    hashed.append(os.fspath(where))
    return original(where, **kwargs)

  paths.sha256 = noted
  made = train.Checkpointer(folder, description={})
  for n in (1, 2):
    made.save(n, state(n), {"step": n})
    made.wait()
  found["hashed"] = [h for h in hashed if "00002/" in h or "_00000002" in h]
  newest = files.step_folder(made.folder, 2)
  sums = files.read_json(newest / files.CHECKSUMS)["files"]
  found["files"] = sorted(sums)
  sizes = {n: about["bytes"] for n, about in sums.items()}
  victim = next(n for n in files.share_of(sizes, (1, 2)) if "/d/" in n)
  found["victim"] = victim

  def restore(name):
    del hashed[:]
    again = train.Checkpointer(folder, description={})
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      got, position = again.restore(state(0))
    found[name] = {
        "step": position["step"], "hashed": list(hashed),
        "warnings": [str(w.message) for w in caught],
        "right": halves(got) == halves(state(position["step"]))}

  restore("whole")

  def change(place):
    raw = bytearray(paths.read_bytes(newest / victim))
    raw[place] ^= 1
    paths.write_bytes(newest / victim, bytes(raw))

  agree.first("test/harm", lambda: change(5))
  restore("harmed")
  agree.first("test/mend", lambda: change(5))
  restore("mended")

  # The second process's disk fills up while it reads its share.
  def full(where, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))

  if jax.process_index() == 1:
    paths.sha256 = full
  try:
    made.save(3, state(3), {"step": 3}, wait=True)
  except UserError as e:
    found["failed"] = str(e)
  found["left"] = agree.first("test/left", lambda: files.steps(made.folder))
  return found


def main() -> None:
  folder, out, port, index = sys.argv[1:]
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", 2, int(index))
  with jax.set_mesh(sharding.make_mesh({"fsdp": 2})):
    found = run(folder)
  (pathlib.Path(out) / f"found-{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
  main()
