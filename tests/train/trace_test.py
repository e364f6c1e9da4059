"""A trace is made when a file asks for it, of a run that goes on."""

import warnings

import jax.numpy as jnp
from lm import train
from lm.types import TrainState
import pytest
from tests.train import toy


class Ask(train.Hook):
  """Writes a request after the second step."""

  def __init__(self, folder, text):
    self._path, self._text = folder / "trace.json", text

  def after_step(self, run):
    if run.step == 2:
      self._path.write_text(self._text)


def step(state, batch):
  return state.replace(step=state.step + 1), {
      "loss": jnp.float32(1.0) + jnp.sum(jnp.asarray(batch.tokens_BT)) * 0}


def run(folder, text, steps=12):
  state = TrainState(jnp.int32(0), {"w": jnp.zeros(())}, ())
  state = train.fit(state, toy.Source(), step, steps, [
      Ask(folder, text), train.TraceOnDemand(folder, every=2)],
      place=lambda batch: batch)
  assert int(state.step) == steps
  assert not (folder / "trace.json").exists()
  return sorted(p.name for p in folder.glob("traces/**/*") if p.is_file())


@pytest.mark.parametrize("text", ['{"steps": 3}', "", '{"steps": 1000}'])
def test_a_request_makes_a_trace(tmp_path, text):
  assert any(name.endswith(".xplane.pb") for name in run(tmp_path, text))


@pytest.mark.parametrize("text", ['{"steps": 0}', "now!", "[1]"])
def test_a_bad_request_is_a_warning(tmp_path, text):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert run(tmp_path, text) == []
  assert any("nothing is traced" in str(w.message) for w in caught)


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
  (tmp_path / "traces").write_text("a file")
  with pytest.warns(UserWarning, match="could not write the trace"):
    assert run(tmp_path, '{"steps": 2}') == []
