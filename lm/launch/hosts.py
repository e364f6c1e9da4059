"""Finding the other hosts, and meeting them before JAX is told of them.

JAX's own start waits for every host and, if one does not come, ends the process
by a C++ stack that names nobody. So the hosts meet first: each says who it is
to process 0, at the coordinator's own address, which then is handed to JAX. Who
is missing, who has another config or another version of the code, and whose
working folder is another one, is said by name.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import select
import socket
import time
from typing import Any, Protocol
import uuid

import jax

from lm import paths
from lm.types import UserError

HOSTS_FILE = "hosts.json"
_POLL = 0.5  # Seconds between two attempts to reach process 0.
_LOOK = 10.0  # Seconds in which a file of one host is seen by the others.
# A host that JAX has not heard of for so many seconds is taken for dead.
_HEARTBEAT = 60


class LostHosts(UserError):
  """Other hosts are missing or gone; starting again may help."""


class Folder(Protocol):
  """What is asked of a working folder: of pathlib or of a bucket."""

  def __truediv__(self, name: str) -> Any:
    """A file in it."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process this is.

  Attributes:
    coordinator: "HOST:PORT" of process 0.
    count: how many processes there are.
    index: which of them this is.
    names: of the processes, as far as they are known beforehand.
  """

  coordinator: str
  count: int
  index: int
  names: Mapping[int, str] = dataclasses.field(default_factory=dict)

  @property
  def port(self) -> int:
    return int(self.coordinator.rpartition(":")[2])

  @property
  def host(self) -> str:
    return self.coordinator.rpartition(":")[0].strip("[]")

  def name(self, index: int) -> str:
    """Host and process, for people."""
    known = self.names.get(index)
    return f"{known} (process {index})" if known else f"process {index}"


def find(
    *, auto: bool = False, coordinator: str | None = None,
    num_processes: int = 1, process_id: int = 0, timeout: float = 300,
) -> Place | None:
  """Which process this is; None if it is the only one.

  Args:
    auto: ask Cloud TPU's metadata, Slurm, Kubernetes or MPI.
    coordinator: "HOST:PORT" of process 0, where nothing can be asked.
    num_processes: how many processes there are.
    process_id: which of them this is.
    timeout: seconds to wait for the name of process 0 to be known.

  Raises:
    UserError: flags that do not fit together, or nothing is found.
  """
  if not auto and num_processes == 1:
    return None
  if not auto:
    if not coordinator:
      raise UserError("--num_processes needs --coordinator=HOST:PORT")
    if not 0 <= process_id < num_processes:
      raise UserError(f"--process_id={process_id} is not below"
                      f" --num_processes={num_processes}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise UserError(f"--coordinator={coordinator} is not HOST:PORT")
    return Place(coordinator, num_processes, process_id)
  from jax._src import clusters  # What jax.distributed.initialize does first.
  try:
    address, count, index, _ = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, None, None, None, None, int(timeout)))
  except (RuntimeError, ValueError, OSError) as e:
    raise LostHosts(f"could not find the other hosts: {_line(e)}") from e
  if None in (address, count, index):
    raise UserError(
        "--distributed found no other hosts: this is no Cloud TPU, Slurm,"
        " Kubernetes or MPI job; leave it out, or give --coordinator,"
        " --num_processes and --process_id")
  if count == 1:
    return None
  names = dict(enumerate(
      os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))
  return Place(address, count, index, names if len(names) == count else {})


def join(
    place: Place | None, *, workdir: Folder | None = None,
    about: Mapping[str, Any] | None = None, timeout: float = 300,
) -> dict[int, str]:
  """Meets the other hosts and starts JAX on all; call before other JAX use.

  Args:
    place: of `find`; None does nothing.
    workdir: must be the same folder on all; gets hosts.json.
    about: what must be equal on all, such as the config.
    timeout: seconds to wait for all.

  Returns:
    The name of each process.

  Raises:
    LostHosts: not all came in time; they are named.
    UserError: the hosts do not belong together.
  """
  if place is None:
    return {0: socket.gethostname()}
  if not place.names and workdir is not None:
    place = dataclasses.replace(place, names=_last_time(workdir, place.count))
  names = meet(place, workdir=workdir, timeout=timeout,
               about={"code": code_digest(), "jax": jax.__version__,
                      **{k: digest(v) for k, v in (about or {}).items()}})
  if jax.config.jax_platforms in (None, "", "cpu"):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
        place.coordinator, place.count, place.index,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout),
        heartbeat_timeout_seconds=_HEARTBEAT)
  except (RuntimeError, ValueError) as e:
    raise LostHosts(f"could not join the other hosts: {_line(e)}") from e
  return names


def meet(
    place: Place, *, about: Mapping[str, Any], timeout: float,
    workdir: Folder | None = None,
) -> dict[int, str]:
  """Waits until every process has come; arguments as for `join`."""
  hello = {"process": place.index, "count": place.count, "pid": os.getpid(),
           "host": socket.gethostname(), "about": dict(about)}
  deadline = time.monotonic() + timeout
  if place.index == 0:
    answer = _Meeting(place, hello, deadline, timeout).hold(workdir)
  else:
    answer = _attend(place, hello, deadline, timeout, workdir)
  if "lost" in answer:
    raise LostHosts(answer["lost"])
  if "error" in answer:
    raise UserError(answer["error"])
  return {int(k): v for k, v in answer["hosts"].items()}


class _Meeting:
  """Process 0 receives the others."""

  def __init__(self, place: Place, hello: dict, deadline: float,
               timeout: float):
    self._place, self._deadline, self._timeout = place, deadline, timeout
    self._hellos: dict[int, dict] = {0: hello}
    self._open: dict[int, socket.socket] = {}
    self._fault: str | None = None

  def hold(self, workdir: Folder | None) -> dict[str, Any]:
    """Returns the answer that everyone who came was given."""
    with self._listen() as server:
      while (len(self._hellos) < self._place.count and self._fault is None
             and time.monotonic() < self._deadline):
        server.settimeout(_POLL)
        try:
          self._receive(server.accept()[0])
        except TimeoutError:
          pass
        self._forget_the_gone()
    answer = self._answer()
    if workdir is not None and "meeting" in answer:
      answer = self._share(workdir, answer)
    for connection in self._open.values():
      _send(connection, answer)
      connection.close()
    return answer

  def _listen(self) -> socket.socket:
    while True:  # The coordinator of a run that is just ending may be there.
      try:
        return _server(self._place.port)
      except OSError as e:
        if time.monotonic() > self._deadline:
          raise LostHosts(
              f"port {self._place.port} of this host cannot be used:"
              f" {e.strerror}; stop the process that holds it, or choose"
              " another --coordinator") from e
        time.sleep(_POLL)

  def _receive(self, connection: socket.socket) -> None:
    """Hears one that came; strangers are sent away."""
    hello = _read(connection, 5)
    if hello is None:
      connection.close()
      return
    index = hello.get("process")
    if not isinstance(index, int) or not isinstance(hello.get("about"), dict):
      connection.close()
      return
    first, host = self._hellos[0], f"{hello.get('host')} (process {index})"
    if index in self._hellos:
      other = self._hellos[index]
      _send(connection, {"error": (
          f"process {index} is already there, on {other['host']} (pid"
          f" {other['pid']}): give each host another --process_id")})
      connection.close()
      return
    self._open[index], self._hellos[index] = connection, hello
    if hello["count"] != first["count"] or index >= first["count"]:
      self._fault = (f"{host} says --num_processes={hello['count']} but process"
                     f" 0 {first['count']}: give all the same")
    for key, value in first["about"].items():
      if hello["about"].get(key) != value and not self._fault:
        self._fault = (f"{host} has another {key} than process 0: start the"
                       " same command with the same code on all hosts")

  def _forget_the_gone(self) -> None:
    """Who dies while waiting must come again."""
    for index, connection in list(self._open.items()):
      if select.select([connection], [], [], 0)[0]:  # It has nothing to say.
        del self._open[index], self._hellos[index]
        connection.close()

  def _share(self, workdir: Folder, answer: dict) -> dict[str, Any]:
    """Writes to the working folder, and asks whether the others see it."""
    paths.write_bytes(workdir / HOSTS_FILE,
                      json.dumps(answer, indent=1).encode())
    for connection in self._open.values():
      _send(connection, {"look": answer["meeting"]})
    for index, connection in self._open.items():
      reply = _read(connection, 4 * _LOOK)
      if reply is None:
        return {"lost": f"{self._place.name(index)} left while the hosts met"}
      if not reply.get("seen"):
        return {"error": (
            f"--workdir={reply.get('workdir')} of {self._hellos[index]['host']}"
            f" (process {index}) is not the folder that process 0 sees: give"
            " one that all hosts share, such as gs://BUCKET/RUN")}
    return answer

  def _answer(self) -> dict[str, Any]:
    place = self._place
    if self._fault:
      return {"error": self._fault}
    missing = [place.name(i) for i in range(place.count)
               if i not in self._hellos]
    if missing:
      return {"lost": (
          f"after {self._timeout:.0f} s {len(missing)} of {place.count}"
          f" processes are missing: {', '.join(missing)}; see their own logs,"
          " start the same command there, and check that they reach"
          f" {place.coordinator}")}
    return {"meeting": uuid.uuid4().hex, "hosts": {
        i: self._hellos[i]["host"] for i in range(place.count)}}


def _attend(place: Place, hello: dict, deadline: float, timeout: float,
            workdir: Folder | None) -> dict[str, Any]:
  """What process 0 answers."""
  reason = "no answer"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((place.host, place.port), 5) as connection:
        _send(connection, hello)
        # Process 0 may give up later than we do: its answer names the missing.
        answer = _read(connection, deadline - time.monotonic() + 10)
        if answer is not None and "look" in answer:
          _send(connection, {"workdir": str(workdir), "seen": (
              workdir is None or _sees(workdir, answer["look"]))})
          answer = _read(connection, 5 * _LOOK)
        if answer is not None:
          return answer
    except OSError as e:
      reason = e.strerror or str(e)
    time.sleep(_POLL)
  return {"lost": (
      f"process 0 did not answer at {place.coordinator} for {timeout:.0f} s"
      f" ({reason}): see whether the same command was started there, and"
      " whether this host reaches it (its firewall, --coordinator)")}


def _server(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6,
                                dualstack_ipv6=True, backlog=1024)
  return socket.create_server(("", port), backlog=1024)


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
  try:
    connection.settimeout(5)
    connection.sendall(json.dumps(message).encode() + b"\n")
  except OSError:
    pass  # It is gone; it will come again, or be missed.


def _read(connection: socket.socket, timeout: float) -> dict | None:
  """One line of JSON; None if it is something else or nothing comes."""
  connection.settimeout(max(timeout, 0.1))
  try:
    with connection.makefile("rb") as f:
      message = json.loads(f.readline(1 << 20))
  except (OSError, ValueError):
    return None
  return message if isinstance(message, dict) else None


def _sees(workdir: Folder, meeting: str) -> bool:
  """Whether this is the folder that process 0 has written to."""
  end = time.monotonic() + _LOOK  # A network file system may lag.
  while True:
    try:
      if json.loads(
          paths.read_bytes(workdir / HOSTS_FILE))["meeting"] == meeting:
        return True
    except (UserError, OSError, ValueError, KeyError):
      pass
    if time.monotonic() > end:
      return False
    time.sleep(_POLL)


def _last_time(workdir: Folder, count: int) -> dict[int, str]:
  """The names of the hosts when they last met in this folder."""
  try:
    hosts = json.loads(paths.read_bytes(workdir / HOSTS_FILE))["hosts"]
    return {int(k): str(v) for k, v in hosts.items()} if (
        len(hosts) == count) else {}
  except (UserError, OSError, ValueError, KeyError, AttributeError):
    return {}


def digest(value: Any) -> str:
  """Sixteen hex digits of anything that JSON can say."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_digest() -> str:
  """Changes with any source file of the package."""
  root = pathlib.Path(__file__).resolve().parents[1]
  found = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    found.update(path.relative_to(root).as_posix().encode())
    found.update(path.read_bytes())
  return found.hexdigest()[:16]


def _line(error: BaseException) -> str:
  return str(error).strip().splitlines()[0] if str(error).strip() else (
      type(error).__name__)
