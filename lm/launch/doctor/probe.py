"""JAX started in a process of its own: `python -m lm.launch.doctor.probe`.

Says what it does before it does it, as lines of JSON: if it then hangs or is
ended by a library, the last line tells where.
"""

import argparse
from collections.abc import Sequence
import json
import os
import statistics
import sys
import time
import traceback
from typing import Any

MEBIBYTES = 64  # Of each device's float32 numbers that are summed.
_REPEATS = 5


def say(**facts: Any) -> None:
  sys.stdout.write(json.dumps(facts) + "\n")
  sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--distributed", action="store_true")
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int, default=1)
  parser.add_argument("--process_id", type=int, default=0)
  parser.add_argument("--timeout", type=float, default=120)
  args = parser.parse_args(argv)
  try:
    _run(args)
  except Exception as e:
    say(error=str(e), type=type(e).__name__)
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # Otherwise JAX waits for hosts that wait for something else.


def _run(args: argparse.Namespace) -> None:
  say(stage="importing JAX")
  import jax
  from lm.launch import runtime
  runtime.quiet()
  runtime.quiet_without_accelerator()
  if args.distributed or args.num_processes > 1:
    say(stage="finding the other hosts")
    from lm.launch import hosts
    place = hosts.find(
        auto=args.distributed, coordinator=args.coordinator,
        num_processes=args.num_processes, process_id=args.process_id,
        timeout=args.timeout)
    say(stage="meeting the other hosts",
        index=place.index if place else 0)
    say(names=list(hosts.join(place, timeout=args.timeout).values()))
  say(stage="starting the devices")
  devices = jax.devices()
  owned = [d.process_index for d in devices]
  say(platform=devices[0].platform, kind=devices[0].device_kind,
      local=jax.local_device_count(), total=len(devices),
      processes=jax.process_count(), index=jax.process_index(),
      owned=[owned.count(i) for i in range(jax.process_count())])
  if len(devices) > 1:
    say(stage="the all-reduce")
    say(**all_reduce())
  else:
    say(stage="a matrix product")
    from lm.train import peak
    say(peak=peak.measure())
  say(done=True)


def all_reduce(mebibytes: int = MEBIBYTES) -> dict[str, float]:
  """Sums an array over all devices: is it right, and how fast?

  Returns:
    seconds: median.
    bandwidth: bytes/s that each device sends in a ring, 2 (n-1)/n of the array.
    difference: the largest, on this host's devices, to the right sum; all
      numbers are small integers, which float32 adds exactly.
  """
  import jax
  from jax import lax
  import jax.numpy as jnp
  from jax.sharding import AxisType
  from jax.sharding import PartitionSpec as P
  n, size = jax.device_count(), mebibytes * 2**20 // 4
  mesh = jax.make_mesh((n,), ("all",), axis_types=(AxisType.Auto,),
                       devices=jax.devices())

  def per_device(function, in_specs, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs,
                                 out_specs=out_specs, check_vma=False))

  def ramp():
    return (lax.iota(jnp.int32, size) % 7).astype(jnp.float32)

  def block():
    return ramp() + (lax.axis_index("all") % 8 + 1).astype(jnp.float32)

  def difference(x):
    right = sum(i % 8 + 1 for i in range(n)) + n * ramp()
    return jnp.max(jnp.abs(x - right))[None]

  x = per_device(block, (), P("all"))()
  reduce = per_device(lambda x: lax.psum(x, "all"), P("all"), P())
  y = reduce(x).block_until_ready()  # Compiles.
  seconds = []
  for _ in range(_REPEATS):
    begin = time.perf_counter()
    y = reduce(x).block_until_ready()
    seconds.append(time.perf_counter() - begin)
  wrong = per_device(difference, P(), P("all"))(y)
  median = statistics.median(seconds)
  return {"seconds": median,
          "bandwidth": 2 * (n - 1) / n * size * 4 / median,
          "difference": max(float(s.data.max())
                            for s in wrong.addressable_shards)}


if __name__ == "__main__":
  main()
