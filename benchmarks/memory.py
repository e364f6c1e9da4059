"""Memory of a training step: us against PyTorch, each in a process of its own.

    python benchmarks/memory.py [--sizes 1M 12M 124M]

The models and batches of `training.py`. What is counted is the largest
resident memory of two steps after those that compile, less what the process
had after its imports: parameters, optimizer state, gradients, activations.
PyTorch runs eagerly, in float32 and under bfloat16 autocast; the smaller
counts. Linux only: it reads /proc.
"""

import argparse
import pathlib
import subprocess
import sys

import jax

from lm import sharding
import training

_WAYS = ("ours", "float32", "bfloat16")


def resident(field: str) -> int:
  """Bytes of VmRSS, now, or VmHWM, the most so far."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field + ":"):
      return int(line.split()[1]) * 1024
  raise ValueError(field)


def child(way: str, size: str) -> int:
  training.prepare()
  with jax.set_mesh(sharding.make_mesh(dict(data=1))):
    before = resident("VmRSS")
    step = training.ours(size) if way == "ours" else training.pytorch(
        size, bfloat16=way == "bfloat16", compiled=False)
    step(), step()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forget the peak.
    step(), step()
    return resident("VmHWM") - before


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sizes", nargs="+", choices=training.SHAPES,
                      default=[*training.SHAPES])
  parser.add_argument("--child", choices=_WAYS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    sys.stdout.write(f"{child(args.child, args.sizes[0])}\n")
    return
  for size in args.sizes:
    used = {way: int(subprocess.run(
        [sys.executable, __file__, "--sizes", size, "--child", way],
        check=True, stdout=subprocess.PIPE, text=True).stdout)
        for way in _WAYS}
    peer = min(_WAYS[1:], key=used.__getitem__)
    sys.stdout.write(
        f"{size}: ours {used['ours'] / 2**20:,.0f} MiB, PyTorch {peer}"
        f" {used[peer] / 2**20:,.0f} MiB, ours/peer"
        f" {used['ours'] / used[peer]:.3g}\n")


if __name__ == "__main__":
  main()
