"""How near run.c comes to the memory's roof, at the shape of SmolLM2-135M.

A token of a decoder reads all weights once, so that no program is faster than
the memory: tokens/s <= bandwidth / bytes of the weights. The bandwidth is that
of sums over the same file by as many threads, for a second before each run: a
mean, as the run's speed is one, since others may use the machine; the best of
all sums is shown, too.

  python -m benchmarks.two_file [--tokens=100] [--runs=5]

Of llama2.c this says only what is certain: it needs a third file, the
tokenizer's, and 973 lines for float32 alone.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import jax
import numpy as np

import common
from lm.data.vocab import ByteVocab
from lm.interop import two_file
from lm.launch import runtime
from lm.model import LanguageModel, ModelConfig

SMOLLM2 = ModelConfig(
    vocab_size=49_152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3,
    head_dim=64, d_mlp=1536, max_length=2048, rope_theta=100_000.0, tied=True)
_CC = ["cc", "-O3", "-march=native", "-fopenmp"]
_ROOF = r"""
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
int main(int count, char **args) {
  struct stat about;
  int fd = open(args[count - 1], O_RDONLY);
  fstat(fd, &about);
  long n = about.st_size / 8;
  uint64_t *p = mmap(0, about.st_size, PROT_READ, MAP_SHARED, fd, 0), sum = 0;
  double best = 0, start = omp_get_wtime();
  for (int k = 0; k < 25; k++) {
    double t = omp_get_wtime();
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
    for (long i = 0; i < n; i++) sum += p[i];
    t = 8 * n / (omp_get_wtime() - t);
    if (t > best) best = t;
  }
  return printf("%.0f %.0f %d\n", 200 * n / (omp_get_wtime() - start), best,
                (int)(sum & 1)) < 0;
}
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--tokens", type=int, default=100)
  parser.add_argument("--runs", type=int, default=5)
  args = parser.parse_args()
  runtime.quiet_without_accelerator()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _export(folder)
    (folder / "roof.c").write_text(_ROOF)
    subprocess.run([*_CC, folder / "roof.c", "-o", folder / "roof"], check=True)
    subprocess.run([*_CC, folder / "float32" / "run.c", "-lm", "-o",
                    folder / "run"], check=True)
    speeds: dict[str, list[float]] = {"float32": [], "int8": []}
    prompts: list[float] = []
    shares: dict[str, list[float]] = {"float32": [], "int8": []}
    roofs: list[float] = []

    def measure(dtype: str) -> float:
      mean, best = map(float, subprocess.run(
          [folder / "roof", folder / "float32" / "model.bin"], check=True,
          capture_output=True, text=True).stdout.split()[:2])
      roofs.append(best)
      model = folder / dtype / "model.bin"
      done = subprocess.run(
          [folder / "run", model, "-n", str(args.tokens), "x" * 64],
          check=True, capture_output=True, text=True, errors="replace")
      prompt, speed = map(float, re.findall(
          r"\(([\d.]+)", done.stderr))
      speeds[dtype].append(speed)
      shares[dtype].append(speed * _weight_bytes(dtype) / mean)
      if dtype == "float32":
        prompts.append(prompt)
      return speed

    common.alternate(
        "two-file runtime, int8 (ours) against float32 (peer)",
        lambda: measure("int8"), lambda: measure("float32"), runs=args.runs,
        unit="tokens/s")
    sys.stdout.write(f"memory: {max(roofs) / 1e9:.1f} GB/s at best\n")
    for dtype, share in shares.items():
      size = _weight_bytes(dtype)
      sys.stdout.write(
          f"{dtype}: {size / 1e6:.0f} MB a token;"
          f" {statistics.median(share):.0%} of the memory's roof at the time"
          f" (best pair {max(share):.0%}); best run"
          f" {max(speeds[dtype]) * size / 1e9:.1f} GB/s\n")
    sys.stdout.write(f"a prompt in float32: {statistics.median(prompts):.0f}"
                     " tokens/s\n")
    lines = (folder / "float32" / "run.c").read_text().count("\n")
    sizes = [(folder / d / "model.bin").stat().st_size for d in speeds]
    sys.stdout.write(
        f"run.c: {lines} lines (llama2.c: 973, and a third file for the"
        f" tokenizer); model.bin: {sizes[0] / 1e6:.0f} MB in float32,"
        f" {sizes[1] / 1e6:.0f} MB in int8\n")


def _weight_bytes(dtype: str) -> float:
  """Bytes of the weights that one token reads."""
  return SMOLLM2.num_params * (4 if dtype == "float32" else 1 + 4 / 64)


def _export(folder: pathlib.Path) -> None:
  rng = np.random.default_rng(0)

  def one(path, x):
    del path
    return 0.02 * rng.standard_normal(x.shape, np.float32)
  params = jax.tree_util.tree_map_with_path(
      one, LanguageModel(SMOLLM2).abstract())
  for dtype in ("float32", "int8"):
    two_file.export(folder / dtype, SMOLLM2, params, ByteVocab(), dtype=dtype)


if __name__ == "__main__":
  main()
