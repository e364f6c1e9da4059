"""Ahead-of-time compilation for a TPU that is not there, kept by content."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import time
from typing import Any

import jax

from lm import paths
from lm.launch.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler made of a program.

  Attributes:
    text: the scheduled HLO, "" if it does not fit.
    peak: bytes of HBM that a device needs; 0 if it does not fit. At the most,
      if `host` is not 0: of a program that also keeps things in the host's
      memory the compiler tells only the peak of both together.
    host: bytes that it keeps there.
    seconds: that compiling took, when it was done.
    refusal: the compiler's message when memory is too small, else "".
  """

  text: str
  peak: int
  host: int
  seconds: float
  refusal: str = ""


def compile_for(lowered: Any, topology: Topology,
                options: dict[str, str]) -> Compiled:
  """The compiled program, from the cache if it was compiled before.

  Args:
    lowered: of `jax.jit(...).lower(...)`, for the topology's devices.
    topology: of those devices.
    options: what it was jitted with; part of the cache's key.
  """
  path = _path(lowered, topology, options)
  if path.exists():
    return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
  begin = time.perf_counter()
  with _no_cache():
    try:
      made = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
      # VMEM can run out too, which says nothing about the size of the model.
      if "RESOURCE_EXHAUSTED" not in str(e) or "HBM" not in str(e):
        raise
      found = Compiled("", 0, 0, time.perf_counter() - begin, str(e))
    else:
      found = Compiled(made.as_text(), *_memory(made, topology),
                       time.perf_counter() - begin)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  packed = json.dumps(dataclasses.asdict(found)).encode()
  partial.write_bytes(gzip.compress(packed, 5))
  partial.replace(path)
  return found


def _memory(made: Any, topology: Topology) -> tuple[int, int]:
  """`peak` and `host` of a compiled program."""
  stats = made.memory_analysis()
  host = stats.host_temp_size_in_bytes
  if not host:
    return stats.peak_memory_in_bytes, 0
  most = stats.argument_size_in_bytes + stats.temp_size_in_bytes
  return min(most, topology.chip.hbm), host


def versions() -> dict[str, str]:
  """Of what compiles."""
  import libtpu
  return {"jax": jax.__version__, "libtpu": libtpu.__version__}


def _path(lowered, topology, options) -> pathlib.Path:
  key = json.dumps([lowered.as_text(), topology.name, topology.slices,
                    sorted(options.items()), versions()])
  digest = hashlib.sha256(key.encode()).hexdigest()[:32]
  return paths.cache_folder() / "plan" / f"{digest}.json.gz"


@contextlib.contextmanager
def _no_cache():
  """JAX's own cache writes such programs, but cannot read them."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)
