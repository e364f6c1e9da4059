"""A `gcloud` of this machine: as strict as the real one, in a folder.

Run as a program it is gcloud. Flags and answers are taken from Google's pages,
below docs.cloud.google.com/: sdk/gcloud/reference/COMMAND for the flags;
tpu/docs/reference/rest/v2/projects.locations.{queuedResources,nodes} for what
describe and list print; tpu/docs/queued-resources for the states and that a
SUSPENDED or FAILED request stays until it is deleted; tpu/docs/preemptible for
PREEMPTED; compute/docs/reference/rest/v1/instances. Messages of errors are
those of gcloud's own sources (command_lib/storage) and of bug reports.

`Cloud` is the tests' handle on it. The folder has state.json (what there is),
cues.json (what shall happen), calls.jsonl (what was asked) and buckets/.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import sys
import types

WIDE = {"--project": 1, "--quiet": 0, "--format": 1}
ZONE = {"--zone": 1}
LIST = {"--filter": 1, "--limit": 1, "--page-size": 1, "--sort-by": 1}
# Command: how many positional arguments, at least and at most; flags, 1 if
# they take a value; flags that must be there.
COMMANDS = {
    "compute tpus queued-resources create": (1, 1, {
        **ZONE, "--accelerator-type": 1, "--runtime-version": 1, "--node-id": 1,
        "--node-count": 1, "--node-prefix": 1, "--async": 0, "--spot": 0,
        "--reserved": 0, "--service-account": 1, "--scopes": 1, "--network": 1,
        "--subnetwork": 1, "--metadata": 1, "--metadata-from-file": 1,
        "--internal-ips": 0, "--labels": 1, "--tags": 1, "--guaranteed": 0,
        "--valid-until-duration": 1},
        ("--zone", "--accelerator-type", "--runtime-version")),
    "compute tpus queued-resources describe": (1, 1, ZONE, ("--zone",)),
    "compute tpus queued-resources list": (0, 0, ZONE | LIST, ("--zone",)),
    "compute tpus queued-resources delete": (
        1, 1, ZONE | {"--async": 0, "--force": 0}, ("--zone",)),
    "compute tpus tpu-vm list": (0, 0, ZONE | LIST, ("--zone",)),
    "compute tpus tpu-vm ssh": (
        1, 1, ZONE | {"--worker": 1, "--command": 1, "--internal-ip": 0},
        ("--zone",)),
    "compute tpus accelerator-types list": (0, 0, ZONE | LIST, ("--zone",)),
    "compute tpus locations list": (0, 0, LIST, ()),
    "compute instances create": (1, 9, ZONE | {
        "--machine-type": 1, "--image-family": 1, "--image-project": 1,
        "--boot-disk-size": 1, "--scopes": 1, "--service-account": 1,
        "--network": 1, "--subnet": 1, "--metadata": 1,
        "--metadata-from-file": 1}, ("--zone",)),
    "compute instances list": (0, 9, LIST | {"--zones": 1}, ()),
    "compute instances delete": (1, 9, ZONE, ("--zone",)),
    "storage cat": (1, 9, {"--range": 1}, ()),
    "storage ls": (0, 9, {"--recursive": 0}, ()),
    "storage cp": (2, 9, {"--no-clobber": 0, "--recursive": 0}, ()),
}
LOGIN = """You do not currently have an active account selected.
Please run:

  $ gcloud auth login

to obtain new credentials."""
STATES = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


class Cloud:
  """What a test sees and changes of the fake.

  Attributes:
    root: its folder; put on PATH by `install`.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    (root / "bin").mkdir(parents=True)
    program = root / "bin" / "gcloud"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -SE {__file__} "$@"\n')
    program.chmod(0o755)
    self.bucket("bucket")

  def install(self, monkeypatch) -> "Cloud":
    monkeypatch.setenv("PATH", f"{self.root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(self.root))
    return self

  def inside(self, monkeypatch) -> "Cloud":
    """As `install`, but `lm` asks it without a process for each command."""
    def run(words, *, input="", capture_output=False, **kw):
      del kw
      status, out, err = execute(words[1:], self.root, lambda: input)
      if not capture_output:
        sys.stdout.write(out)
      return types.SimpleNamespace(returncode=status, stdout=out, stderr=err)

    monkeypatch.setattr(gcloud_lib(), "subprocess", types.SimpleNamespace(
        run=run, DEVNULL=None))
    return self.install(monkeypatch)

  def bucket(self, name: str) -> pathlib.Path:
    path = self.root / "buckets" / name
    path.mkdir(parents=True, exist_ok=True)
    return path

  def file(self, url: str) -> pathlib.Path:
    path = self.root / "buckets" / url.removeprefix("gs://")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  def cue(self, **cues) -> None:
    """login=False; refuse={command's last words: message}; fail=message;
    zones={zone: [types]}; lag=polls in each state."""
    path = self.root / "cues.json"
    path.write_text(json.dumps(_load(path, {}) | cues))

  def state(self) -> dict:
    return _load(self.root / "state.json", _empty())

  @contextlib.contextmanager
  def changed(self):
    state = self.state()
    yield state
    (self.root / "state.json").write_text(json.dumps(state))

  def preempt(self, name: str, *, suspended: bool = True) -> None:
    with self.changed() as state:
      for node in state["queued"][name]["nodes"]:
        state["nodes"][node]["state"] = "PREEMPTED"
      if suspended:
        state["queued"][name]["state"] = "SUSPENDED"

  def finish(self, workdir: str, *, status: str = "0", hosts: int = 1) -> None:
    """As the VMs' units do when a run has ended."""
    run = json.loads(self.file(f"{workdir}/launch/run.json").read_text())
    for i in range(hosts):
      path = self.file(f"{workdir}/launch/finished/{run['id']}/w-{i}.json")
      path.write_text(json.dumps(
          {"id": run["id"], "host": f"w-{i}", "status": status}) + "\n")

  def calls(self, *words: str) -> list[list[str]]:
    """Argument lists so far that begin with these words."""
    path = self.root / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [c for c in map(json.loads, lines) if c[:len(words)] == list(words)]


def gcloud_lib():
  from lm.launch.tpu import gcloud  # Not needed as a program.
  return gcloud


def _load(path: pathlib.Path, default):
  return json.loads(path.read_text()) if path.exists() else default


def _empty() -> dict:
  return {"queued": {}, "nodes": {}, "instances": {}}


class Refused(Exception):
  """Status and message of a failed command."""


def parse(words):
  """Command, positional arguments and flags; refuses what is not known."""
  for length in (4, 3, 2):
    name = " ".join(words[:length])
    if name in COMMANDS:
      break
  else:
    raise Refused(2, "", f"Invalid choice: {' '.join(words[:4])!r}.")
  least, most, flags, required = COMMANDS[name]
  flags, given, found = flags | WIDE, {}, []
  for word in words[length:]:
    if word.startswith("--"):
      flag, equals, value = word.partition("=")
      if flag not in flags or bool(equals) != bool(flags[flag]):
        raise Refused(2, name, f"unrecognized arguments: {word}")
      given[flag] = value
    else:
      found.append(word)
  if not least <= len(found) <= most or not set(required) <= set(given):
    raise Refused(2, name, "argument missing: must be specified.")
  return name, found, given


def answer(name, found, flags, state, cues, root, text):
  """Does it; returns what is printed."""
  if not cues.get("login", True):
    raise Refused(1, name, LOGIN)
  zones = cues.get("zones", {"us-east5-b": ["v6e-8", "v5litepod-16", "v5p-16"],
                             "us-central1-a": ["v5p-16"]})
  zone = flags.get("--zone")
  if zone and zone not in zones and "compute tpus" in name:
    raise Refused(1, name, "PERMISSION_DENIED: Permission denied on"
                  f" 'locations/{zone}' (or it may not exist).")
  for words, message in cues.get("refuse", {}).items():
    if name.endswith(words):
      raise Refused(1, name, message)
  if name.startswith("storage"):
    return storage(name, found, flags, root, text)
  if "queued-resources" in name:
    return queued(name, found, flags, state, cues, zones)
  if name.endswith("tpu-vm list"):
    return json.dumps([n for n in state["nodes"].values()
                       if f"/{zone}/" in n["name"]])
  if name.endswith("tpu-vm ssh"):
    node = state["nodes"].get(found[0].rpartition("@")[2])
    if not node or node["state"] != "READY":
      raise Refused(1, name, "This TPU has terminal state"
                    ' "PREEMPTED", so it cannot be used anymore.')
    return f"ran on {found[0]}\n"
  if name.endswith("locations list"):
    return json.dumps([{"name": f"projects/p/locations/{z}", "locationId": z}
                       for z in zones])
  if name.endswith("accelerator-types list"):
    return json.dumps([{"name": f"projects/p/locations/{zone}/acceleratorTypes/"
                        f"{t}", "type": t} for t in zones[zone]])
  return instances(name, found, flags, state)


def metadata(flags):
  pairs = [p.split("=", 1) for p in flags.get("--metadata", "").split(",") if p]
  files = flags.get("--metadata-from-file", "").split(",")
  pairs += [(k, pathlib.Path(v).read_text()) for k, v in
            (p.split("=", 1) for p in files if p)]
  return dict(pairs)


def queued(name, found, flags, state, cues, zones):
  zone, all_of = flags["--zone"], state["queued"]
  verb = name.split()[-1]
  if verb == "list":
    return json.dumps([show(q) for q in all_of.values()])
  path = f"projects/p/locations/{zone}/queuedResources/{found[0]}"
  one = all_of.get(found[0])
  if verb == "create":
    if one:
      raise Refused(1, name, f"ALREADY_EXISTS: Resource '{path}' already"
                    " exists")
    kind = flags["--accelerator-type"]
    if kind not in zones[zone]:
      raise Refused(1, name, f"NOT_FOUND: Accelerator type {kind!r} not found"
                    f" in zone {zone}")
    if ("--node-id" in flags) == ("--node-count" in flags):
      raise Refused(2, name, "exactly one of --node-id, --node-count must be"
                    " specified.")
    count = int(flags.get("--node-count", 0))
    if count == 1:
      raise Refused(1, name, "Invalid value for [--node-count]: Node count must"
                    " be greater than 1")
    prefix = flags.get("--node-prefix", found[0])
    nodes = [f"{prefix}-{i}" for i in range(count)] or [flags["--node-id"]]
    states = ["WAITING_FOR_RESOURCES", "FAILED"] if "fail" in cues else STATES
    all_of[found[0]] = {
        "path": path, "nodes": nodes, "kind": kind, "state": "CREATING",
        "coming": [s for s in states for _ in range(cues.get("lag", 1))],
        "error": cues.get("fail", ""), "spot": "--spot" in flags,
        "metadata": metadata(flags)}
    return ""
  if not one:
    raise Refused(1, name, f"NOT_FOUND: Resource '{path}' was not found")
  if verb == "delete":
    if "--force" not in flags and one["state"] == "ACTIVE":
      raise Refused(1, name, "FAILED_PRECONDITION: the queued resource has"
                    " nodes")
    one["state"], one["coming"] = "DELETING", ["DELETING"] * cues.get("lag", 1)
    return ""
  printed = json.dumps(show(one))
  if one["coming"]:
    one["state"] = one["coming"].pop(0)
  elif one["state"] == "DELETING":
    del all_of[found[0]]
    for node in one["nodes"]:
      state["nodes"].pop(node, None)
  if one["state"] == "ACTIVE":
    for node in one["nodes"]:
      hosts = max(1, int(one["kind"].rpartition("-")[2]) // 8)
      state["nodes"].setdefault(node, {
          "name": f"projects/p/locations/{zone}/nodes/{node}",
          "state": "READY", "health": "HEALTHY",
          "acceleratorType": one["kind"], "metadata": one["metadata"],
          "networkEndpoints": [{"ipAddress": "10.0.0.2"}] * hosts})
  return printed


def show(one):
  about = {"state": one["state"]}
  if one["state"] == "FAILED":
    about["failedData"] = {"error": {"code": 8, "message": one["error"]}}
  return {"name": one["path"], "state": about, "tpu": {"nodeSpec": [
      {"nodeId": node, "node": {"acceleratorType": one["kind"],
                                "metadata": one["metadata"]}}
      for node in one["nodes"]]}}


def instances(name, found, flags, state):
  verb, all_of = name.split()[-1], state["instances"]
  if verb == "create":
    items = [{"key": k, "value": v} for k, v in metadata(flags).items()]
    all_of[found[0]] = {"name": found[0], "status": "RUNNING",
                        "metadata": {"items": items}}
  elif verb == "delete":
    if found[0] not in all_of:
      raise Refused(1, name, f"The resource 'instances/{found[0]}' was not"
                    " found")
    del all_of[found[0]]
  else:
    return json.dumps(list(all_of.values()))
  return ""


def storage(name, found, flags, root, text):
  """Files of root/buckets; messages of command_lib/storage."""
  buckets = root / "buckets"

  def local(url):
    path = buckets / url.removeprefix("gs://")
    bucket = path.relative_to(buckets).parts[0]
    if not (buckets / bucket).is_dir():
      raise Refused(1, name, f"gs://{bucket} not found: 404.")
    return path

  if name.endswith("cat"):
    paths = [p for url in found for p in sorted(
        local(url).parent.glob(local(url).name)) if p.is_file()]
    if not paths:
      raise Refused(1, name, "The following URLs matched no objects or"
                    f" files:\n{found[0]}")
    text = "".join(p.read_text() for p in paths)
    return text[int(flags["--range"]):] if "--range" in flags else text
  if name.endswith("ls"):
    path = local(found[0])
    if not path.is_dir() or not any(path.iterdir()):
      raise Refused(1, name, "One or more URLs matched no objects.")
    return "".join(f"{found[0].rstrip('/')}/{p.name}{'/' * p.is_dir()}\n"
                   for p in sorted(path.iterdir()))
  source, target = found
  to = local(target) if target.startswith("gs://") else pathlib.Path(target)
  if "--no-clobber" in flags and to.exists():
    return ""
  if source != "-" and source.startswith("gs://"):
    source = local(source)
    if "--recursive" in flags and source.is_dir():
      for file in (p for p in source.rglob("*") if p.is_file()):
        copy = to / source.name / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
      return ""
    if not source.is_file():
      raise Refused(1, name, f"The following URLs matched no objects or files:"
                    f"\n{found[0]}")
  to.parent.mkdir(parents=True, exist_ok=True)
  if source == "-":
    to.write_text(text())
  else:
    to.write_bytes(pathlib.Path(source).read_bytes())
  return ""


def execute(words, root, text):
  """Status, standard output and standard error; `text()` is the input."""
  with open(root / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Several may be asked at once.
    with open(root / "calls.jsonl", "a") as log:
      log.write(json.dumps(words) + "\n")
    state = _load(root / "state.json", _empty())
    try:
      name, found, flags = parse(words)
      printed = answer(name, found, flags, state,
                       _load(root / "cues.json", {}), root, text)
    except Refused as e:
      status, name, message = e.args
      return status, "", f"ERROR: (gcloud.{name.replace(' ', '.')}) {message}\n"
    finally:
      (root / "state.json").write_text(json.dumps(state))
  return 0, printed, ""


def main(words) -> int:
  status, out, err = execute(words, pathlib.Path(os.environ["FAKE_GCLOUD"]),
                             sys.stdin.read)
  sys.stdout.write(out)
  sys.stderr.write(err)
  return status


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
