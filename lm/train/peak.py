"""The machine's matmul peak, measured once: the denominator of MFU."""

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
  cores = len(os.sched_getaffinity(0)) if hasattr(
      os, "sched_getaffinity") else os.cpu_count()
  key = "/".join((device.platform, device.device_kind, platform.node(),
                  f"{cores} cores", f"jax {jax.__version__}"))
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


def measure(*, seconds: float = 0.4) -> float:
  """The best FLOP/s of a square matmul on the first device.

  float32 and bfloat16 inputs, both with a float32 result, as the model's
  matmuls have; other work on the machine lowers what is found.

  Args:
    seconds: time spent on each type, after compiling.
  """
  device = jax.devices()[0]
  size = 1024 if device.platform == "cpu" else 8192
  best = 0.0
  with jax.set_mesh(sharding.make_mesh(devices=[device])):
    dot = jax.jit(functools.partial(
        jnp.matmul, preferred_element_type=jnp.float32))
    for dtype in (jnp.bfloat16, jnp.float32):
      x = jax.device_put(jnp.ones((size, size), dtype), device)
      dot(x, x).block_until_ready()
      end = time.perf_counter() + seconds
      while (begin := time.perf_counter()) < end:
        dot(x, x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
  return best
