"""Names of TPU slices, and what the compiler makes of them."""

import json
import math
import os
import re
import subprocess
import sys

import house
from lm.launch.plan import topology
from lm.types import UserError
import pytest

CHIPS = topology.CHIPS

# As docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} list them, and, for tpu7x
# and the whole pod of v5p, Google's launcher (github.com/AI-Hypercomputer/xpk).
DOCUMENTED = [
    # Cloud name, ours, chips, VMs.
    ("v4-8", "v4:2x2x1", 4, 1),
    ("v4-16", "v4:2x2x2", 8, 2),
    ("v4-32", "v4:2x2x4", 16, 4),
    ("v4-64", "v4:2x4x4", 32, 8),
    ("v4-128", "v4:4x4x4", 64, 16),
    ("v4-256", "v4:4x4x8", 128, 32),
    ("v4-512", "v4:4x8x8", 256, 64),
    ("v4-1024", "v4:8x8x8", 512, 128),
    ("v4-1536", "v4:8x8x12", 768, 192),
    ("v4-2048", "v4:8x8x16", 1024, 256),
    ("v4-4096", "v4:8x16x16", 2048, 512),
    ("v5litepod-1", "v5e:1x1", 1, 1),
    ("v5litepod-4", "v5e:2x2", 4, 1),
    ("v5litepod-8", "v5e:2x4", 8, 2),
    ("v5litepod-16", "v5e:4x4", 16, 4),
    ("v5litepod-32", "v5e:4x8", 32, 8),
    ("v5litepod-64", "v5e:8x8", 64, 16),
    ("v5litepod-128", "v5e:8x16", 128, 32),
    ("v5litepod-256", "v5e:16x16", 256, 64),
    ("v5p-8", "v5p:2x2x1", 4, 1),
    ("v5p-16", "v5p:2x2x2", 8, 2),
    ("v5p-64", "v5p:2x4x4", 32, 8),
    ("v5p-128", "v5p:4x4x4", 64, 16),
    ("v5p-256", "v5p:4x4x8", 128, 32),
    ("v5p-512", "v5p:4x8x8", 256, 64),
    ("v5p-1024", "v5p:8x8x8", 512, 128),
    ("v5p-2048", "v5p:8x8x16", 1024, 256),
    ("v5p-4096", "v5p:8x16x16", 2048, 512),
    ("v5p-8192", "v5p:16x16x16", 4096, 1024),
    ("v5p-12288", "v5p:16x16x24", 6144, 1536),
    ("v5p-17920", "v5p:16x20x28", 8960, 2240),
    ("v6e-1", "v6e:1x1", 1, 1),
    ("v6e-4", "v6e:2x2", 4, 1),
    ("v6e-8", "v6e:2x4", 8, 2),
    ("v6e-256", "v6e:16x16", 256, 64),
    ("tpu7x-2", "tpu7x:1x1x1", 1, 1),
    ("tpu7x-8", "tpu7x:2x2x1", 4, 1),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 16),
    ("tpu7x-18432", "tpu7x:16x24x24", 9216, 2304),
]

REFUSED = [
    # What is asked for, and what is named instead.
    ("v5e:16x32", "v5e:16x16"),
    ("v5e:4x2", "v5e:2x4"),
    ("v5e:4x4x4", "v5e:8x8"),
    ("v5e:0x4", "v5e:1x1"),
    ("v5e-512", "v5litepod-256"),
    ("v5litepod-12", "v5litepod-8"),
    ("v6e:999999x999999", "v6e:16x16"),
    ("v5p-100", "v5p-128"),
    ("v5p-1", "v5p-8"),
    ("v5p-129", "v5p-128"),
    ("v5p:8x8", "v5p:4x4x4"),
    ("v5p:8x4x4", "v5p:4x4x8"),
    ("v5p:4x32x4", "v5p:4x4x32"),
    ("v5p:1x1x1", "v5p:2x2x1"),
    ("v5p:4x4x6", "v5p:4x4x4"),
    ("v5p:32x32x32", "v5p:16x20x28"),
    ("v4:16x16x20", "v4:16x16x16"),
    ("v7x:4x4x4", "tpu7x:2x2x1"),
    ("v5:16x16", "v5p:2x2x1"),
    ("h100-8", "v6e:2x2"),
    ("v5p", "v5p:8x8x8"),
    ("v5p:8", "v5p:8x8x8"),
    ("v5p:8x8x", "v5p:8x8x8"),
    ("v5p:-4x4x4", "v5p:8x8x8"),
    ("", "v5p:8x8x8"),
]

# Prints what the compiler makes of each NAME,SLICES of its arguments.
CHILD = """
import json, sys
from lm.launch.plan import topology
found = []
for argument in sys.argv[1:]:
  name, slices = argument.split(",")
  devices = topology.parse(name, int(slices)).devices()
  found.append([len(devices), len({d.process_index for d in devices}),
                {d.platform for d in devices} == {"tpu"}])
print(json.dumps(found))
"""


@pytest.mark.parametrize("cloud, name, chips, hosts", DOCUMENTED)
def test_documented_names_and_back(cloud, name, chips, hosts):
  found = topology.parse(cloud)
  assert found == topology.parse(name)
  assert (found.name, found.cloud_name) == (name, cloud)
  assert (found.chips, found.hosts) == (chips, hosts)


def test_v5e_by_its_other_name():
  assert topology.parse(" V5e-256 ") == topology.parse("v5litepod-256")


@pytest.mark.parametrize("text, instead", REFUSED)
def test_a_refusal_names_a_slice_that_exists(text, instead):
  with pytest.raises(UserError) as refused:
    topology.parse(text)
  line = str(refused.value)
  tried = re.search(r"; try (\S+)", line)
  assert tried and "\n" not in line
  topology.parse(tried[1])
  assert tried[1] == instead


def test_the_line_says_what_there_is():
  with pytest.raises(UserError) as refused:
    topology.parse("v5e:16x32")
  assert str(refused.value) == (
      "v5e:16x32 does not exist: v5e slices are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8,"
      " 8x16 and 16x16 (256 chips); more chips are more --slices; try"
      " v5e:16x16")


def test_no_slices():
  with pytest.raises(UserError, match="at least 1"):
    topology.parse("v5e:16x16", 0)


def test_a_topology_that_does_not_exist_cannot_be_made():
  """So whatever the compiler is asked for exists."""
  with pytest.raises(UserError, match="try v5e:16x16"):
    topology.Topology(CHIPS["v5e"], (16, 32))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_every_slice_has_names_and_no_two_the_same(chip):
  shapes = topology.shapes(chip)
  assert len(set(shapes)) == len(shapes)
  assert math.prod(shapes[-1]) == chip.pod
  for shape in shapes:
    one = topology.Topology(chip, shape)
    assert topology.parse(one.name) == one
    assert topology.parse(one.cloud_name).chips == one.chips


def test_clocks_are_those_of_the_flops():
  """A device's matrix units do a power of two of FLOPs a cycle."""
  for chip in CHIPS.values():
    a_cycle = math.log2(chip.flops / chip.clock)
    assert a_cycle == pytest.approx(round(a_cycle), abs=0.005), chip.name


@pytest.mark.parametrize("name, wrap", [
    ("v4:2x4x4", (False, False, False)),
    ("v5p:4x4x4", (True, True, True)),
    ("v5p:4x8x12", (True, True, True)),
    ("v5e:8x8", (False, False, False)),
    ("v5e:8x16", (False, True, False)),
    ("v6e:16x16", (True, True, False)),
    ("tpu7x:2x2x1", (False, False, False)),
])
def test_where_the_links_close(name, wrap):
  assert topology.parse(name).wrap == wrap


def test_counts_are_of_all_slices():
  found = topology.parse("tpu7x:4x4x4", 3)
  assert (found.chips, found.num_devices, found.hosts) == (192, 384, 48)
  assert (found.name, found.cloud_name) == ("tpu7x:4x4x4", "tpu7x-128")


def run(*arguments: str, code: str = CHILD) -> str:
  done = subprocess.run(
      [sys.executable, "-c", code, *arguments], cwd=house.ROOT, text=True,
      env={**os.environ, **topology.environment()}, capture_output=True,
      timeout=120, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_the_compiler_knows_them():
  pytest.importorskip("libtpu")
  asked = [(f"{name}:{shape}", 1) for name in CHIPS for shape in (
      ("1x1", "16x16") if CHIPS[name].dimensions == 2 else
      ("1x1x1" if name == "tpu7x" else "2x2x1", "8x16x16"))]
  asked += [("v5e:8x16", 2), ("v5p:4x4x4", 2), ("tpu7x:2x2x2", 2)]
  found = json.loads(run(*(f"{name},{slices}" for name, slices in asked)))
  for (name, slices), (devices, hosts, tpu) in zip(
      asked, found, strict=True):
    mine = topology.parse(name, slices)
    assert (devices, hosts, tpu) == (mine.num_devices, mine.hosts, True), name


def test_a_refused_shape_does_not_reach_the_compiler():
  """v5e:16x32 would end the process in the compiler (a failed check)."""
  code = ("import sys\n"
          "from lm.launch.plan import topology\n"
          "from lm.types import UserError\n"
          "try:\n  topology.parse('v5e:16x32').devices()\n"
          "except UserError:\n"
          "  print(sorted({'libtpu', 'jax.experimental.topologies'}"
          " & set(sys.modules)))\n")
  assert run(code=code).split() == ["[]"]


def test_without_libtpu(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)  # As if not installed.
  with pytest.raises(UserError, match=re.escape("deliberate-lm[plan]")):
    topology.parse("v5e:2x2").devices()
