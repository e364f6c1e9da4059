"""How JAX is set up for a run: devices, hosts, compile cache, noise.

This is the one place for process-wide settings. No XLA flag is set here: a flag
for TPU goes with the compile that needs it, and `XLA_FLAGS` is the user's.
"""

from collections.abc import Mapping
import glob
import os
import sys

import jax

from lm import paths


# A training step on a CPU takes its scratch memory afresh each time; with small
# pages the page faults cost more than the arithmetic (2 to 4 times the step,
# measured). glibc reads the setting only at start-up.
ALLOCATOR = ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
             if sys.platform == "linux" else {})


def restart_with(environment: Mapping[str, str]) -> None:
  """Starts the process again with these variables, unless they are set."""
  missing = {k: v for k, v in environment.items() if k not in os.environ}
  if missing:
    os.environ.update(missing)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def quiet() -> None:
  """Silences the C++ log lines of libraries that are loaded later."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def quiet_without_accelerator() -> None:
  """Leaves libtpu alone where it is installed for planning only.

  It would look for a TPU, and complain at length that there is none.
  """
  devices = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd")
  if (sys.platform == "linux" and not jax.config.jax_platforms
      and not any(glob.glob(pattern) for pattern in devices)):
    jax.config.update("jax_platforms", "cpu")


def cpu_devices(count: int | None) -> None:
  """Makes the CPU look like `count` devices; None leaves it alone."""
  if count is not None:
    jax.config.update("jax_num_cpu_devices", count)


def compilation_cache() -> None:
  """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR wins.

  A folder that cannot be written costs the cache, not the run.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  folder = paths.cache_folder() / "jax"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
