"""A small experiment in which process 1 fails; run by faults_test.py."""

import dataclasses

import jax
from lm import objectives
from lm import optim
from lm import train
from lm.launch import main
from lm.launch import watch
from lm.types import UserError
import numpy as np
from tests.train import toy

STEPS, FAILS = 400, 7


class Source(toy.Source):
  """This host's rows; from step `FAILS` on those of process 1 are poisoned."""

  def __init__(self, poisoned):
    super().__init__()
    self._poisoned = poisoned and jax.process_index() == 1

  def __call__(self, state):
    whole = super().__call__(state)
    rows = np.array_split(np.arange(8), jax.process_count())
    mine = jax.tree.map(lambda x: x[rows[jax.process_index()]], whole)
    if self._poisoned and self.step > FAILS:
      mine = dataclasses.replace(mine, weights_BT=mine.weights_BT * np.nan)
    return mine


class Fail(train.Hook):
  """Raises on process 1 alone."""

  def __init__(self, error):
    self._error = error

  def after_step(self, run):
    if run.step == FAILS and jax.process_index() == 1:
      raise self._error


def run(config, workdir, mesh):
  del mesh
  model, tx = toy.Toy(), optim.adamw(1e-2)
  loss = objectives.next_token_and_value(model.apply)
  checkpointer = train.Checkpointer(workdir, description={"stage": "toy"})
  source = Source(config.fault == "nan")
  errors = {"user": UserError("its own disk is broken: mend it"),
            "bug": KeyError("no such thing")}
  state = train.begin(checkpointer, source, model=model, tx=tx,
                      key=jax.random.key(0))
  hooks = [train.StopIfDiverged(checkpointer),
           train.Checkpoint(checkpointer, every=3), watch.Beat()]
  if config.fault in errors:
    hooks.append(Fail(errors[config.fault]))
  train.fit(state, source, train.make_step(loss, tx, seed=0), STEPS, hooks)


if __name__ == "__main__":
  main.main(run)
