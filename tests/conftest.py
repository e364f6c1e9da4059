"""What every test process needs: a CPU, quiet libraries, parsed flags."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Child processes compile the same programs again and again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path.home() / ".cache" / "lm" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def pytest_configure(config):
  del config
  from absl import flags
  # seqio, TFDS and grain read flags that only an absl main would parse.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])
