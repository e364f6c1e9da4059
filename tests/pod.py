"""Several processes on loopback, each started as a host of a pod would be."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import house
import jax
from lm import train
import numpy as np
from tests.experiments import road

STEPS = 30


def free_port() -> int:
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]


@dataclasses.dataclass
class Pod:
  """Processes of one run.

  Attributes:
    processes: by index; supervisors where they were asked for.
    logs: what each wrote to stdout and stderr.
  """

  processes: list[subprocess.Popen]
  logs: list[pathlib.Path]

  def log(self, index: int) -> str:
    return self.logs[index].read_text()

  def wait(self, timeout: float = 240) -> list[int]:
    """The exit status of each."""
    end = time.monotonic() + timeout
    try:
      return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
    except subprocess.TimeoutExpired:
      raise AssertionError("\n".join(
          f"== {i}\n{self.log(i)[-3000:]}"
          for i in range(len(self.logs)))) from None

  def worker(self, index: int) -> int:
    """The process id of what trains: the child of a supervisor."""
    parent = self.processes[index].pid
    children = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    found = children.read_text().split()
    return int(found[0]) if found else 0


@contextlib.contextmanager
def start(command, workdir: pathlib.Path, count: int, *more: str,
          where: str | None = None):
  """A pod; whatever of it still runs at the end is killed.

  Args:
    command: the module and its arguments, without --workdir.
    workdir: of the run; the logs lie beside it.
    count: of processes.
    *more: arguments for all.
    where: the --workdir, if it is not that folder but a bucket's.
  """
  address = f"localhost:{free_port()}"
  environment = {**os.environ, "PYTHONPATH": str(house.ROOT)}
  processes, logs = [], []
  for i in range(count):
    logs.append(workdir.with_name(f"{workdir.name}.{i}.log"))
    with open(logs[-1], "w") as log:
      processes.append(subprocess.Popen(
          [sys.executable, "-m", *command, f"--workdir={where or workdir}",
           f"--coordinator={address}", f"--num_processes={count}",
           f"--process_id={i}", *more], cwd=house.ROOT, stdout=log,
          stderr=subprocess.STDOUT, env=environment, start_new_session=True))
  pod = Pod(processes, logs)
  try:
    yield pod
  finally:
    for process in processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def checkpoints(workdir: pathlib.Path) -> list[int]:
  return sorted(int(m[1]) for p in workdir.glob("checkpoints/step_*")
                if (m := re.fullmatch(r"step_(\d+)", p.name)))


def until(condition, *, timeout: float = 120, what: str = "it"):
  """Waits until `condition()` holds."""
  end = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < end, f"{what} did not happen in {timeout} s"
    time.sleep(0.02)


def command(stage, folder, workdir, *more):
  """A stage's command line; it goes on from the one before in `folder`."""
  before = {"pretrain": None, "instruct": "pretrain", "value": "instruct"}
  init = before[stage] and folder / before[stage]
  arguments = road.arguments(
      stage, workdir, f"--config.steps={STEPS}", "--config.batch=8",
      "--config.checkpoint.every=3", "--config.log_every=5",
      "--config.mesh.fsdp=-1", text=folder / "text", init=init)
  arguments = [a for a in arguments if not a.startswith("--workdir")]
  if stage == "instruct":
    arguments.append("--config.evaluate.questions=0")
  return [f"experiments.{stage}.run", *arguments, *more]


def same(a, b):
  """Whether two runs ended in the same state, bit for bit."""
  a, b = train.load(a), train.load(b)
  assert a.step == b.step == STEPS
  assert a.description["source"] == b.description["source"]
  leaves = [jax.tree.leaves(x.params) for x in (a, b)]
  for x, y in zip(*leaves, strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
