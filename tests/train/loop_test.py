"""The loop and its hooks."""

import io
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tests.train import toy

from lm import objectives
from lm import optim
from lm import train
from lm.train import peak
from lm.types import TrainState, UserError

MODEL = toy.Toy()
TX = optim.adamw(1e-2)
STEP = train.make_step(objectives.next_token(MODEL.apply), TX, seed=0)


def begin():
  return train.init_state(MODEL, TX, jax.random.key(0))


def scripted(losses):
  """A step that only reports the given losses."""
  def step(state, batch):
    del batch
    loss = losses[min(int(state.step), len(losses) - 1)]
    return (TrainState(state.step + 1, state.params, state.opt_state),
            {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1.0)})
  return step


class Seen(train.Hook):
  def __init__(self):
    self.calls = []

  def on_metrics(self, run, step, metrics):
    self.calls.append(("metrics", step, run.step, metrics["loss"]))

  def after_step(self, run):
    self.calls.append(("after", run.step))

  def finish(self, run):
    self.calls.append(("finish", run.step))

  def close(self):
    self.calls.append(("close",))


def test_metrics_come_one_step_late_and_none_is_lost():
  seen = Seen()
  final = train.fit(begin(), toy.Source(), STEP, 4, [seen])
  assert int(final.step) == 4
  order = [c[:3] for c in seen.calls]
  assert order == [
      ("after", 1), ("metrics", 1, 2), ("after", 2), ("metrics", 2, 3),
      ("after", 3), ("metrics", 3, 4), ("after", 4), ("metrics", 4, 4),
      ("finish", 4), ("close",)]
  losses = [c[3] for c in seen.calls if c[0] == "metrics"]
  state, expected = begin(), []
  for n in range(4):
    state, metrics = STEP(state, toy.batch(n))
    expected.append(float(metrics["loss"]))
  assert losses == expected


def test_host_reads_per_step(monkeypatch, tmp_path):
  """Only the late metrics are read: a value each, of the step before."""
  from jax._src import array
  reads = []
  original = array.ArrayImpl._value.fget

  def counted(self):
    reads.append(self.shape)
    return original(self)

  dispatched = []

  def step(state, batch):
    dispatched.append(len(reads))
    return STEP(state, batch)

  state = begin()
  hooks = [train.JsonLines(tmp_path), train.TensorBoard(tmp_path),
           train.StopIfDiverged(), train.StopOnSignal(),
           train.Progress(console=rich.console.Console(file=io.StringIO()))]
  metrics = STEP(begin(), toy.batch())[1]
  monkeypatch.setattr(array.ArrayImpl, "_value", property(counted))
  float(metrics["loss"])
  assert len(reads) == 1, "the counter does not see a read"
  reads.clear()
  train.fit(state, toy.Source(), step, 6, hooks)
  per_step = np.diff(dispatched)
  # Before the second dispatch nothing was read but the initial step number.
  assert per_step[0] == 0, per_step
  assert all(n == len(metrics) for n in per_step[1:]), per_step
  assert all(shape == () for shape in reads)


def test_fit_ends_at_num_steps_also_after_a_resume():
  source = toy.Source()
  state = train.fit(begin(), source, STEP, 2, ())
  seen = Seen()
  state = train.fit(state, source, STEP, 3, [seen])
  assert [c for c in seen.calls if c[0] == "after"] == [("after", 3)]
  seen = Seen()
  train.fit(state, source, STEP, 3, [seen])
  assert seen.calls == [("finish", 3), ("close",)]
  assert source.step == 3


def test_the_toy_learns():
  seen = Seen()
  train.fit(begin(), toy.Source(), STEP, 60, [seen])
  losses = [c[3] for c in seen.calls if c[0] == "metrics"]
  assert losses[0] > 0.8 * math.log(toy.V) and losses[-1] < 0.5 * losses[0]


# ------------------------------------------------------------------ metrics


def test_json_lines_are_cut_back_when_a_run_resumes(tmp_path):
  source = toy.Source()
  train.fit(begin(), source, STEP, 5, [train.JsonLines(tmp_path, every=2)])
  rows = train.read_metrics(tmp_path)
  assert [r["step"] for r in rows] == [1, 2, 4, 5]
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"step": 6, "lo')  # Torn by a kill.
  state = train.fit(begin(), toy.Source(), STEP, 3, ())  # As if from step 3.
  source.step = 3
  train.fit(state, source, STEP, 5, [train.JsonLines(tmp_path, every=2)])
  again = train.read_metrics(tmp_path)
  assert [r["step"] for r in again] == [1, 2, 4, 5]
  assert again == rows
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    assert {"step", "loss", "grad_norm", "tokens"} <= set(json.loads(line))


def test_tensorboard_gets_the_scalars(tmp_path):
  train.fit(begin(), toy.Source(), STEP, 4,
            [train.TensorBoard(tmp_path, every=2)])
  raw = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
  assert raw.count(b"train/loss") == 2


def test_progress_prints_lines_where_there_is_no_terminal(monkeypatch):
  monkeypatch.setattr(peak, "flops", lambda: 1e9)
  out = io.StringIO()
  seen = []

  class Reports(train.Hook):
    def on_report(self, run, step, metrics):
      seen.append((step, metrics))

  train.fit(begin(), toy.Source(), STEP, 6, [
      train.Progress(flops_per_token=1000.0, every=3, title="toy",
                     console=rich.console.Console(file=out)), Reports()])
  lines = out.getvalue().splitlines()
  assert len(lines) == 2 and lines[0].startswith("toy 3/6  loss ")
  for word in ("tokens/s", "MFU", "ETA 0:00:0"):
    assert word in lines[0]
  step, speed = seen[-1]
  assert step == 6
  np.testing.assert_allclose(
      speed["speed/mfu"], speed["speed/tokens_per_second"] * 1000 / 1e9)


def test_progress_draws_a_bar_on_a_terminal():
  out = io.StringIO()
  console = rich.console.Console(file=out, force_terminal=True, width=120)
  train.fit(begin(), toy.Source(), STEP, 4, [train.Progress(console=console)])
  assert "4/4" in out.getvalue() and "loss" in out.getvalue()


def test_the_peak_is_measured_once_and_kept(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(peak, "measure", lambda: calls.append(1) or 5e9)
  assert peak.flops(tmp_path) == 5e9
  assert peak.flops(tmp_path) == 5e9
  assert len(calls) == 1
  (tmp_path / "peak.json").write_text("{")
  assert peak.flops(tmp_path) == 5e9 and len(calls) == 2


def test_the_measured_peak_is_plausible():
  assert 1e9 < peak.measure(seconds=0.02) < 1e16


# ----------------------------------------------------------------- stopping


def test_nan_stops_with_a_report_and_the_last_good_checkpoint(tmp_path):
  checkpointer = train.Checkpointer(tmp_path, description={})
  step = scripted([2.0, 2.0, 2.0, 2.0, math.nan])
  with pytest.raises(train.Diverged) as e:
    train.fit(begin(), toy.Source(), step, 9, [
        train.StopIfDiverged(checkpointer),
        train.Checkpoint(checkpointer, every=2)])
  assert "step 5: loss is nan" in str(e.value)
  assert str(checkpointer.folder / "step_00000004") in str(e.value)
  assert isinstance(e.value, UserError) and "\n" not in str(e.value)


def test_a_poisoned_state_is_never_saved(tmp_path):
  """NaN in the very step that would be saved: its metrics are read first."""
  checkpointer = train.Checkpointer(tmp_path, description={})
  with pytest.raises(train.Diverged, match="step_00000002"):
    train.fit(begin(), toy.Source(), scripted([2.0, 2.0, 2.0, math.nan]), 9, [
        train.StopIfDiverged(checkpointer),
        train.Checkpoint(checkpointer, every=2)])
  assert [p.name for p in checkpointer.folder.iterdir()] == ["step_00000002"]


def test_an_exploding_loss_stops_and_a_noisy_one_does_not():
  noisy = [3 + (n % 5) * 0.4 for n in range(40)]
  train.fit(begin(), toy.Source(), scripted(noisy), 40,
            [train.StopIfDiverged(window=8)])
  with pytest.raises(train.Diverged, match="the loss exploded"):
    train.fit(begin(), toy.Source(), scripted(noisy + [9.0] * 40), 80,
              [train.StopIfDiverged(window=8)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_status(tmp_path, number):
  class Send(train.Hook):
    def after_step(self, run):
      if run.step == 3:
        os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  checkpointer = train.Checkpointer(tmp_path, description={})
  source = toy.Source()
  with pytest.raises(SystemExit) as e:
    train.fit(begin(), source, STEP, 50, [
        Send(), train.StopOnSignal(),
        train.Checkpoint(checkpointer, every=0)])
  assert e.value.code == 128 + number
  found, position = checkpointer.restore(begin())
  assert int(found.step) == position["step"] == source.step
  assert 3 <= source.step <= 4
  assert signal.getsignal(number) is before


# --------------------------------------------------------------- evaluation


def test_evaluation_runs_now_and_then_and_at_the_end(tmp_path):
  calls = []

  def evaluate(params):
    calls.append(float(params["value"]["kernel"][0]))
    return {"score": len(calls)}

  train.fit(begin(), toy.Source(), STEP, 5, [
      train.JsonLines(tmp_path), train.Evaluate(evaluate, every=2, first=True)])
  rows = [(r["step"], r["eval/score"]) for r in train.read_metrics(tmp_path)
          if "eval/score" in r]
  assert rows == [(0, 1), (2, 2), (4, 3), (5, 4)]


class Bytes:
  """Ids 0..14 are words of 1 to 3 bytes, 15 a chat special."""

  size = toy.V
  special_ids = frozenset({15})

  def token_bytes(self, index):
    return b"<|end|>" if index == 15 else b"x" * (1 + index % 3)


def test_bits_per_byte_by_hand():
  sizes = train.token_bytes(Bytes())
  assert list(sizes[:4]) == [1, 2, 3, 1] and sizes[15] == 0
  params = MODEL.init(jax.random.key(0))
  batches = [toy.batch(n) for n in range(2)]
  found = train.bits_per_byte(MODEL.apply, batches, sizes)(params)
  nats = text = tokens = 0.0
  for batch in batches:
    logits = np.asarray(MODEL.apply(params, batch).logits_BTV, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    here = batch.weights_BT > 0
    picked = np.take_along_axis(log_p, batch.targets_BT[..., None], -1)[..., 0]
    nats -= picked[here].sum()
    text += sizes[batch.targets_BT][here].sum()
    tokens += here.sum()
  np.testing.assert_allclose(found["bits_per_byte"], nats / np.log(2) / text,
                             rtol=1e-5)
  np.testing.assert_allclose(found["loss"], nats / tokens, rtol=1e-5)
  with pytest.raises(UserError, match="empty"):
    train.bits_per_byte(MODEL.apply, [], sizes)(params)
