"""How long until the model, decoding, search and training can be used?

    python benchmarks/imports.py

A fresh interpreter imports lm.model, lm.decode, lm.search and lm.train; the
peer is `import seqio`, which T5X-style codebases load (with TensorFlow) for the
same. Seconds, whole process.
"""

import subprocess
import sys
import time

from common import alternate


def seconds(code: str) -> float:
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", code], check=True,
                 stderr=subprocess.DEVNULL)
  return time.perf_counter() - start


if __name__ == "__main__":
  alternate(
      "imports", unit="s",
      ours=lambda: seconds("import lm.model, lm.decode, lm.search, lm.train"),
      peer=lambda: seconds("import seqio"))
