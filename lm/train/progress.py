"""The progress display: a bar on a terminal, plain lines elsewhere."""

from collections import deque
import time
from typing import Any

import jax

from lm.train import peak
from lm.train.loop import Hook


class Progress(Hook):
  """Shows loss, tokens/s, MFU and the time left; on stderr.

  MFU is model FLOP/s over the machine's measured matmul peak. The numbers are
  also reported (`speed/...`), so that they reach the metrics.

  Args:
    flops_per_token: training FLOPs of a token, forward and backward; None
      leaves MFU out.
    every: steps between two lines (or reports, with a bar).
    title: put first.
    console: a `rich.console.Console`; by default one on stderr.
  """

  def __init__(
      self, *, flops_per_token: float | None = None, every: int = 50,
      title: str = "train", console: Any = None,
  ):
    self._flops, self._every, self._title = flops_per_token, every, title
    self._console, self._bar, self._task = console, None, None
    self._peak = 0.0
    self._laps: deque[float] = deque(maxlen=max(2, min(every, 50)))
    self._mark: float | None = None
    self._shown = False

  def start(self, run):
    self._shown = jax.process_index() == 0
    if self._flops:
      self._peak = peak.flops()
    if not self._shown:
      return
    import rich.console
    import rich.progress
    self._console = self._console or rich.console.Console(stderr=True)
    if self._console.is_terminal:
      column = rich.progress.TextColumn
      self._bar = rich.progress.Progress(
          column("{task.description}"), rich.progress.BarColumn(),
          rich.progress.MofNCompleteColumn(), column("{task.fields[numbers]}"),
          console=self._console, refresh_per_second=2)
      self._bar.start()
      self._task = self._bar.add_task(
          self._title, total=run.num_steps, completed=run.step, numbers="")

  def on_metrics(self, run, step, metrics):
    now = time.perf_counter() - run.paused
    if self._mark is not None:
      self._laps.append(now - self._mark)
    # The first step compiles: it is not counted.
    self._mark = now if step > run.start_step else None
    speed = self._speed(run)
    if self._bar is not None:
      self._bar.update(self._task, completed=step,
                       numbers=_line(metrics, speed))
    if step % self._every == 0 or step == run.num_steps:
      if self._shown and self._bar is None:
        self._console.print(
            f"{self._title} {step}/{run.num_steps}  {_line(metrics, speed)}",
            highlight=False, soft_wrap=True, markup=False)
      if speed:
        run.report(step, {k: v for k, v in speed.items() if k != "eta"})

  def on_report(self, run, step, metrics):
    shown = {k: v for k, v in metrics.items()
             if not k.startswith(("speed/", "goodput"))}
    if self._shown and shown:
      text = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
      self._console.print(f"{self._title} {step}/{run.num_steps}  {text}",
                          highlight=False, soft_wrap=True, markup=False)

  def close(self):
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  def _speed(self, run) -> dict[str, float]:
    if not self._laps or sum(self._laps) <= 0:
      return {}
    rate = len(self._laps) / sum(self._laps)
    tokens = rate * run.batch_tokens
    speed = {"speed/tokens_per_second": tokens,
             "eta": max(0, run.num_steps - run.step) / rate}
    if self._flops and self._peak:
      speed["speed/mfu"] = tokens * self._flops / self._peak
    return speed


def _line(metrics: dict[str, float], speed: dict[str, float]) -> str:
  parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
  parts += [f"{k} {v:.4f}" for k, v in metrics.items()
            if k in ("value_loss", "value_accuracy", "reward")]
  if speed:
    parts.append(f"{speed['speed/tokens_per_second']:,.0f} tokens/s")
    if "speed/mfu" in speed:
      parts.append(f"MFU {100 * speed['speed/mfu']:.1f}%")
    seconds = round(speed["eta"])
    parts.append(f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}"
                 f":{seconds % 60:02d}")
  return "  ".join(parts)
