"""Whatever happens to a model.bin, run.c says so in one line or still works.

`python tests/interop/two_file_fuzz_test.py 5000` runs a longer campaign.
"""

import collections
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import numpy as np
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

import c_runtime  # noqa: E402
import jax  # noqa: E402

from lm.data import bpe, bpe_build  # noqa: E402
from lm.interop import two_file  # noqa: E402
from lm.model import LanguageModel, ModelConfig  # noqa: E402

_HEADER = struct.calcsize(two_file._HEADER)
_VOCABULARY = ("texts", "bytes", "ids", "merges", "states", "chars")
_RUNS = [["-n", "3", "-t", "1", "He'll say: <|end|> wörld 123\n\n  12 \u00a0é"],
         ["-c", "-n", "3", "--system", "Hi."], ["--tokenize"],
         ["--tokenize", "-c"], ["--logits", "12 say"]]
_INPUT = {"-c": b"one <|end|>\ntwo\n",
          "--tokenize": "I'm 12 <|user|> é <|end|>\0 \n \0".encode()}


def places(raw: bytes) -> dict[str, tuple[int, int]]:
  """Where each part of a file begins and ends."""
  numbers = struct.unpack_from(two_file._HEADER, raw)[2:]
  head, length = numbers[7], numbers[9]
  texts, size, prefix, merges, states, chars = numbers[11:17]
  made, at = {}, -(-_HEADER // 64) * 64
  for name, room in (
      ("texts", 20 * texts), ("bytes", size), ("ids", 4 * (256 + prefix)),
      ("merges", 16 * merges), ("states", 256 * states),
      ("chars", 1024 * chars), ("rope", 4 * head * length)):
    made[name] = at, at + room
    at = -(-(at + room) // 64) * 64
  return made | {"weights": (at, len(raw)), "header": (0, _HEADER)}


def original(folder: pathlib.Path, dtype: str) -> bytes:
  """A small file in which no section is empty."""
  alphabet = bpe.byte_alphabet()
  pairs = [("h", "e"), ("s", "a"), ("sa", "y"), ("1", "2"), ("Ġ", "w")]
  tokens = [*alphabet, *("".join(p) for p in pairs), "Hello", "<|end|>"]
  spec = bpe_build.bpe_spec(
      {t: i for i, t in enumerate(tokens)}, pairs,
      [bpe_build.added_token(len(tokens) - 1, "<|end|>", special=True)],
      pre_tokenizer={"type": "Sequence", "pretokenizers": [
          {"type": "Digits", "individual_digits": True},
          {"type": "ByteLevel", "add_prefix_space": False,
           "trim_offsets": True, "use_regex": True}]},
      decoder={"type": "ByteLevel", "add_prefix_space": True,
               "trim_offsets": True, "use_regex": True}, ignore_merges=True)
  end = len(tokens) - 1
  vocab = bpe.HuggingFaceVocab(spec, {
      "eos_ids": [end], "prefix": [end], "chat_template": bpe_build.TEMPLATE})
  config = ModelConfig(
      vocab_size=len(tokens), d_model=8, num_layers=1, num_heads=2,
      num_kv_heads=1, head_dim=4, d_mlp=8, max_length=128, qk_norm=True,
      qkv_bias=True, logit_cap=9.0, window=9)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.standard_normal(x.shape, np.float32),
      LanguageModel(config).abstract())
  two_file.export(folder, config, params, vocab, dtype=dtype)
  raw = (folder / "model.bin").read_bytes()
  assert all(low < high for low, high in places(raw).values()), places(raw)
  return raw


def damaged(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
  """The file with bits flipped, numbers changed or an end cut off."""
  bad, parts = bytearray(raw), places(raw)
  kind = rng.choice(["cut", "header", "section", "section", "section",
                     "number", "record"])
  what = kind
  end = parts["rope"][0]
  hard = [0, 1, 2, 3, 7, 64, 127, 1 << 10, 1 << 16, 1 << 22, (1 << 31) - 1,
          1 << 31, (1 << 32) - 1]
  if kind == "cut":
    del bad[rng.randrange(len(bad)):]
    if rng.random() < 0.5:
      del bad[len(bad) // 64 * 64:]
  elif kind == "number":  # Header fields that would be sizes and indices.
    struct.pack_into("<I", bad, rng.randrange(16, _HEADER, 4),
                     rng.choice(hard))
  elif kind == "record":  # The same in the tables.
    name = rng.choice(_VOCABULARY)
    struct.pack_into("<I", bad, rng.randrange(*parts[name], 4),
                     rng.choice([*hard, rng.randrange(300)]))
  else:
    what = "header" if kind == "header" else rng.choice(list(parts))
    low, high = parts[what]
    for bit in rng.sample(range(8 * low, 8 * high), rng.choice([1, 1, 2, 5])):
      bad[bit // 8] ^= 1 << bit % 8
  mended = rng.random() < 0.6 and len(bad) >= end
  if mended:  # So that what lies behind the checksum is tried.
    end = min(places(bad)["rope"][0], len(bad) // 8 * 8)
    struct.pack_into("<Q", bad, 8, two_file.checksum(bytes(bad[:end])))
  return bytes(bad), what + ("+" if mended else "")


def campaign(count: int, seed: int) -> collections.Counter:
  """Runs damaged files; counts (damage, status)."""
  rng, seen = random.Random(seed), collections.Counter()
  program = c_runtime.program("sanitized")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    whole = [original(folder, dtype) for dtype in ("float32", "int8")]
    for args in _RUNS:  # The file as it is.
      assert _status(program, folder / "model.bin", args) == 0
    for i in range(count):
      raw, what = damaged(whole[i % 2], rng)
      path = folder / "bad.bin"
      path.write_bytes(raw)
      seen[what, _status(program, path, rng.choice(_RUNS))] += 1
  return seen


def _status(program, path, args) -> int:
  done = subprocess.run(
      [program, path, *args], input=_INPUT.get(args[0], b""),
      capture_output=True, timeout=60, check=False,
      env={"OMP_NUM_THREADS": "1",
           "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0"})
  lines = [x for x in done.stderr.splitlines()
           if b"WARNING: AddressSanitizer failed to allocate" not in x]
  assert done.returncode in (0, 2), (args, done.stderr.decode()[:3000])
  assert done.returncode == 0 or (
      len(lines) == 1 and lines[0].startswith(b"run: ")), done.stderr
  return done.returncode


def test_damaged_files_are_refused_or_harmless():
  seen = campaign(240, seed=0)
  refused = sum(n for (_, status), n in seen.items() if status == 2)
  assert 100 < refused < 240, seen
  # Behind the checksum, something was refused and something went through.
  assert {s for (what, s), _ in seen.items() if what.endswith("+")} == {0, 2}
  # Any flip that the checksum covers is found by it.
  assert not any(status == 0 for (what, status) in seen
                 if what in ("header", *_VOCABULARY))


@pytest.mark.parametrize("length", [0, 1, 95, 96, 127, 128, 400])
def test_the_shortest_files(length, tmp_path):
  raw = original(tmp_path, "float32")
  path = tmp_path / "short.bin"
  path.write_bytes(raw[:length])
  assert _status(c_runtime.program("sanitized"), path, _RUNS[0]) == 2


if __name__ == "__main__":
  sys.stdout.write(f"{campaign(int(sys.argv[1]), seed=1)}\n")
