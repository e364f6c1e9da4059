"""Kills processes of a run at random moments, for long; not part of the tests.

    make soak            (or: python tests/soak.py --kills=20 --processes=2)

One run of two processes under --supervise is killed (SIGKILL, a random process
at a random moment, the start included) twenty times and must end bit-identical
to a run that nobody disturbed; then one of four processes with two devices each
is preempted and goes on as one, two and eight processes. What happened is added
to docs/hosts.md.
"""

import argparse
import datetime
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import house
import numpy as np
import pod

sys.path.insert(0, str(house.ROOT))
from tests.experiments import road  # noqa: E402

RECORD = house.ROOT / "docs" / "hosts.md"


def command(text: pathlib.Path, workdir: pathlib.Path, steps: int, *,
            log_every: int = 50) -> list[str]:
  arguments = road.arguments(
      "pretrain", workdir, f"--config.steps={steps}", "--config.batch=8",
      "--config.checkpoint.every=10", f"--config.log_every={log_every}",
      "--config.mesh.fsdp=-1", text=text)
  return ["experiments.pretrain.run",
          *(a for a in arguments if not a.startswith("--workdir"))]


def leaves(workdir: pathlib.Path) -> list[np.ndarray]:
  import jax
  from lm import train
  return [np.asarray(x) for x in jax.tree.leaves(train.load(workdir).params)]


def same(a: pathlib.Path, b: pathlib.Path) -> bool:
  return all(np.array_equal(x, y) for x, y in
             zip(leaves(a), leaves(b), strict=True))


def losses(workdir: pathlib.Path) -> dict[int, tuple[float, float]]:
  from lm import train
  return {r["step"]: (r["tokens"], r["loss"])
          for r in train.read_metrics(workdir) if "loss" in r}


def kill(folder: pathlib.Path, *, kills: int, processes: int,
         steps: int) -> list[str]:
  """The soak; returns lines for the record."""
  text, whole = folder / "text", folder / "whole"
  with pod.start(command(text, whole, steps), whole, processes) as run:
    assert run.wait(1200) == [0] * processes, run.log(0)
  broken = folder / "broken"
  done: list[tuple[int, int]] = []  # Which process, and the last checkpoint.
  fruitless = 0
  begin = time.monotonic()
  with pod.start(command(text, broken, steps), broken, processes,
                 "--supervise") as run:
    while len(done) < kills:
      time.sleep(random.uniform(0.5, 20))
      at = max(pod.checkpoints(broken), default=0)
      assert run.processes[0].poll() is None, (
          f"it ended after {len(done)} kills: give more --steps")
      fruitless = fruitless + 1 if done and done[-1][1] == at else 0
      if fruitless > 1:  # The supervisor gives up after three.
        continue
      victim = random.randrange(processes)
      worker = run.worker(victim)
      if not worker:
        continue
      os.kill(worker, signal.SIGKILL)
      done.append((victim, at))
      print(f"kill {len(done)}: process {victim} after step {at}", flush=True)
    status = run.wait(1200)
  minutes = (time.monotonic() - begin) / 60
  identical = status == [0] * processes and same(whole, broken)
  print(f"status {status}, identical {identical}", flush=True)
  return [f"{processes} processes, {steps} steps, {len(done)} kills (of process"
          f" 0: {sum(v == 0 for v, _ in done)}) in {minutes:.0f} minutes:"
          f" exit status {sorted(set(status))}, final parameters"
          f" {'bit-identical' if identical else 'DIFFERENT'}"]


def move(folder: pathlib.Path, *, steps: int) -> list[str]:
  """4 processes of 2 devices, stopped, then 1, 2 and 8 processes."""
  text, whole = folder / "text", folder / "whole4"
  devices = {1: 8, 2: 4, 4: 2, 8: 1}
  def start(workdir, count):
    module, _, *rest = command(text, workdir, steps, log_every=5)
    return pod.start([module, road.float32(folder), *rest], workdir, count,
                     f"--cpu_devices={devices[count]}")
  with start(whole, 4) as run:
    assert run.wait(1200) == [0] * 4, run.log(0)
  wanted, found = losses(whole), []
  for count in (1, 2, 8):
    workdir = folder / f"to{count}"
    with start(workdir, 4) as run:
      pod.until(lambda w=workdir: pod.checkpoints(w), timeout=600)
      run.processes[3].send_signal(signal.SIGTERM)
      assert run.wait(600) == [143] * 4, run.log(0)
    stopped = pod.checkpoints(workdir)[-1]
    with start(workdir, count) as run:
      status = run.wait(1200)
    after = {k: v for k, v in losses(workdir).items() if k > stopped}
    assert after.keys() <= wanted.keys()
    tokens = all(wanted[k][0] == v[0] for k, v in after.items())
    off = {k: abs(v[1] / wanted[k][1] - 1) for k, v in sorted(after.items())}
    found.append(
        f"4 processes x 2 devices, SIGTERM, on after step {stopped} as {count}"
        f" x {devices[count]}: exit status {sorted(set(status))}, batches"
        f" {'the same' if tokens else 'DIFFERENT'}, loss of the next step"
        f" within {next(iter(off.values())):.1e}, of all {len(off)} within"
        f" {max(off.values()):.1e} (float32)")
    print(found[-1], flush=True)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=20, help="0 for none")
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--steps", type=int, default=1200)
  parser.add_argument("--seed", type=int, default=None)
  args = parser.parse_args()
  random.seed(args.seed)
  with tempfile.TemporaryDirectory(prefix="soak-") as name:
    folder = pathlib.Path(name)
    road.text_folder(folder / "text")
    if args.kills:
      note(kill(folder, kills=args.kills, processes=args.processes,
                steps=args.steps))
    note(move(folder, steps=60))


def note(lines: list[str]) -> None:
  """Adds to the record."""
  today = datetime.date.today().isoformat()
  with open(RECORD, "a") as f:
    f.write("".join(f"- {today}: {line}.\n" for line in lines))


if __name__ == "__main__":
  main()
