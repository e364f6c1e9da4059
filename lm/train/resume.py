"""Where a run begins: at its newest checkpoint, or afresh."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from lm.train import step
from lm.train.checkpoint import Checkpointer
from lm.train.loop import Source
from lm.types import Params, TrainState


def begin(
    checkpointer: Checkpointer | None, source: Source, *, model: Any,
    tx: optax.GradientTransformation, key: jax.Array,
    params: Callable[[], Params] | None = None,
) -> TrainState:
  """The state to give to `fit`; running the same command again resumes.

  Args:
    checkpointer: of this run; None always begins afresh.
    source: set to the position of the checkpoint.
    model: anything with `init(key) -> params`.
    tx: the optimizer.
    key: of fresh parameters.
    params: called, when there is no checkpoint, for parameters to begin with
      instead of fresh ones, e.g. those of the stage before.

  Raises:
    UserError: there are checkpoints but none is good, or they are of another
      model, vocabulary, optimizer or data.
  """
  if checkpointer is not None:
    found = checkpointer.restore(step.abstract_state(model, tx))
    if found is not None:
      state, position = found
      source.set_state(position)
      return state
  if params is not None:
    return step.state_of(params(), tx)
  return step.init_state(model, tx, key)
