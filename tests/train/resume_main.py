"""A small run that can be told to die; run by resume_test.py."""

import hashlib
import os
import pathlib
import signal
import sys

import jax
from tests.train import toy

from lm import objectives
from lm import optim
from lm import sharding
from lm import train

STEPS = 12


class Die(train.Hook):
  """Sends this process a signal after a step."""

  def __init__(self, step, number):
    self._step, self._number = step, number

  def after_step(self, run):
    if run.step == self._step:
      os.kill(os.getpid(), self._number)


class Source(toy.Source):
  """Notes the hash of every batch in a file."""

  def __init__(self, folder):
    super().__init__()
    self._path = folder / "batches.txt"

  def __call__(self, state):
    step = self.step
    made = super().__call__(state)
    digest = hashlib.sha256(b"".join(
        x.tobytes() for x in jax.tree.leaves(made))).hexdigest()
    with open(self._path, "a") as f:
      f.write(f"{step} {digest}\n")
    return made


def main(folder, deadly=None):
  """Trains to `STEPS`, from where the folder's run stopped."""
  model = toy.Toy()
  tx = optim.muon(optim.cosine(1e-2, steps=STEPS, warmup=2))
  loss = objectives.next_token_and_value(model.apply, z_loss=1e-3)
  checkpointer = train.Checkpointer(folder, description={"stage": "toy"})
  source = Source(folder)
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    state = train.begin(checkpointer, source, model=model, tx=tx,
                        key=jax.random.key(0))
    return train.fit(
        state, source, train.make_step(loss, tx, seed=0, microbatches=2),
        STEPS, [train.StopOnSignal(), *([deadly] if deadly else []),
                train.JsonLines(folder), train.StopIfDiverged(checkpointer),
                train.Checkpoint(checkpointer, every=3)])


if __name__ == "__main__":
  arguments = [int(a) for a in sys.argv[2:]]
  main(pathlib.Path(sys.argv[1]),
       Die(arguments[0], signal.Signals(arguments[1])) if arguments else None)
