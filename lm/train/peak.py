"""What the machine could do: its matmul peak, the denominator of MFU, measured
once, and how fast it reads memory."""

import functools
import json
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp

from lm import sharding


def flops(folder: str | os.PathLike | None = None) -> float:
  """FLOP/s of all devices together, measured or from the cache.

  Fake CPU devices share one machine and count once.

  Args:
    folder: of the cache; by default $LM_CACHE or ~/.cache/lm.
  """
  device = jax.devices()[0]
  key = "/".join((device.platform, device.device_kind, platform.node(),
                  f"{cores()} cores", f"jax {jax.__version__}"))
  folder = pathlib.Path(folder or os.environ.get("LM_CACHE")
                        or pathlib.Path.home() / ".cache" / "lm")
  path = folder / "peak.json"
  try:
    known = json.loads(path.read_text())
    one = float(known[key])
  except (OSError, ValueError, KeyError, TypeError):
    one = measure()
    try:
      known = json.loads(path.read_text()) if path.exists() else {}
      folder.mkdir(parents=True, exist_ok=True)
      partial = path.with_suffix(f".{os.getpid()}")
      partial.write_text(json.dumps({**known, key: one}, indent=1))
      os.replace(partial, path)
    except (OSError, ValueError):
      pass  # Not to be cached is no reason not to train.
  return one if device.platform == "cpu" else one * jax.device_count()


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def measure(*, seconds: float = 0.4, dtypes=("bfloat16", "float32")) -> float:
  """The best FLOP/s of a square matmul on the first device.

  With a float32 result, as the model's matmuls have; other work on the machine
  lowers what is found.

  Args:
    seconds: time spent on each type, after compiling.
    dtypes: of the inputs.
  """
  device = jax.devices()[0]
  size = 1024 if device.platform == "cpu" else 8192
  best = 0.0
  with jax.set_mesh(sharding.make_mesh(devices=[device])):
    dot = jax.jit(functools.partial(
        jnp.matmul, preferred_element_type=jnp.float32))
    for dtype in dtypes:
      x = jax.device_put(jnp.ones((size, size), dtype), device)
      dot(x, x).block_until_ready()
      end = time.perf_counter() + seconds
      while (begin := time.perf_counter()) < end:
        dot(x, x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
  return best


def bandwidth(*, runs: int = 5) -> float:
  """Bytes a second at which the first device reads memory.

  Args:
    runs: sums of 1 GiB of float32, after compiling; the best counts.
  """
  device = jax.devices()[0]
  best = 0.0
  with jax.set_mesh(sharding.make_mesh(devices=[device])):
    x = jnp.ones((256, 2**20), jnp.float32)
    total = jax.jit(lambda x: x.sum(1))
    total(x).block_until_ready()
    for _ in range(runs):
      begin = time.perf_counter()
      total(x).block_until_ready()
      best = max(best, x.nbytes / (time.perf_counter() - begin))
  return best
