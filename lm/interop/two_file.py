"""A model as two files: `model.bin`, and `run.c`, which runs it.

`cc -O3 -march=native -fopenmp run.c -lm -o run && ./run model.bin "prompt"`
needs nothing else: the file holds the weights, the vocabulary with all that its
rules need (`two_file_vocab.py`), the pieces of the chat template and the
rotations of all positions.

The layout, little-endian: the header (`_HEADER`), then for each section of
`SECTIONS` its offset and number of records, then the sections, each at a
multiple of 64 bytes. The checksum covers all up to the rotations but itself.
Weights are the last section: `final_norm [D]`, then for each layer its norms
[D], [D], with qk_norm [H], [H], with qkv_bias [(N + 2K) H], the kernels q,k,v
[(N + 2K) H, D], o [D, N H], gate,up [2F, D], down [D, F]; then the embeddings
[V, D] and, if not tied, the head [V, D]; each at a multiple of 64 bytes. In
int8 a kernel is bytes w + 128, and then a float32 scale for each `group` of
them: the weights are scale * w, with w in -127..127.
"""

from collections.abc import Iterator, Mapping
import os
import pathlib
import shutil
import struct
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from lm import paths
from lm.data.vocab import Vocab
from lm.interop import two_file_chat, two_file_vocab
from lm.model import ModelConfig
from lm.model.layers import rope_table
from lm.types import Params, UserError

_HEADER = "<8s12I2fQQ"
_MAGIC, _VERSION = b"lm2file\0", 1
_QUANTISED, _TIED, _QK_NORM, _BIAS, _TRIM, _CUT, _DUMMY = (
    1 << i for i in range(7))
# The bytes of a record of each section.
SECTIONS = {
    "eos": 4, "prefix": 4, "tokens": 8, "bytes": 1, "added": 20, "byte_ids": 4,
    "merges": 16, "words": 4, "stages": 4, "program": 24, "kinds": 16,
    "chat": 8, "rope": 4, "weights": 1}
_GROUP = 64
_MOST = {"vocab_size": 1 << 22, "d_model": 1 << 17, "num_layers": 1 << 10,
         "num_heads": 1 << 10, "num_kv_heads": 1 << 10, "head_dim": 1 << 10,
         "d_mlp": 1 << 19, "max_length": 1 << 24}


def export(folder: str | os.PathLike, config: ModelConfig, params: Params,
           vocab: Vocab, *, dtype: str = "float32", source: str = "") -> None:
  """Writes `model.bin` and `run.c` to a local folder.

  Args:
    folder: is made.
    config: of the model; a scalar head is left out.
    params: as `LanguageModel.init` gives.
    vocab: how its texts are written.
    dtype: "float32", or "int8": a quarter of the size, with a scale for each
      64 weights, and products of 8-bit numbers.
    source: where the model is from, for error messages.

  Raises:
    UserError: a vocabulary that cannot be said, weights that are not finite,
      a model that is too large, or a folder that cannot be written.
  """
  where = source or "two-file export"
  if dtype not in ("float32", "int8"):
    raise UserError(f"{where}: dtype {dtype!r}: choose float32 or int8")
  if paths.is_remote(folder):
    raise UserError(f"{folder}: the two files are made on a local disk: give a"
                    " local folder and copy them")
  for name, most in _MOST.items():
    if getattr(config, name) > most:
      raise UserError(f"{where}: model.{name} is over {most}: run.c does not"
                      " hold that")
  folder = pathlib.Path(folder)
  tables = two_file_vocab.tables(vocab, config.vocab_size)
  if tables.composed:
    warnings.warn(f"{where}: the tokenizer puts texts into Unicode's form NFC;"
                  " run.c takes them to be in it", stacklevel=2)
  try:
    chat = two_file_chat.pieces(vocab)
  except UserError as e:
    warnings.warn(f"{where}: exported without chat: {e}", stacklevel=2)
    chat = None
  sections, flags = _vocabulary(tables, vocab, chat)
  cos, sin = rope_table(config, jnp.arange(config.max_length)[None])
  sections["rope"] = np.concatenate([cos[0], sin[0]], -1).astype("<f4")
  flags |= (_QUANTISED * (dtype == "int8") | _TIED * config.tied
            | _QK_NORM * config.qk_norm | _BIAS * config.qkv_bias)
  group = _group(config) if dtype == "int8" else 1
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, config, sections, flags=flags, group=group, weights=_weights(
        config, params, where=where), quantised=dtype == "int8")
  except OSError as e:
    raise UserError(f"{folder}: cannot be written ({e.strerror}): give another"
                    " folder") from e


def _group(config: ModelConfig) -> int:
  """The largest power of two up to 64 that divides all rows."""
  widths = (config.d_model, config.num_heads * config.head_dim, config.d_mlp)
  group = _GROUP
  while any(width % group for width in widths):
    group //= 2
  return group


def _vocabulary(tables: two_file_vocab.Tables, vocab: Vocab,
                chat: two_file_chat.Pieces | None):
  """All sections up to the rotations, and their flags."""
  texts = bytearray()

  def put(raw: bytes) -> tuple[int, int]:
    texts.extend(raw)
    return len(texts) - len(raw), len(raw)

  ints = lambda rows, width: np.array(rows, "<u4").reshape(-1, width)
  # The pair is one number of 64 bits, its left the higher half.
  merges = sorted((left, right, *found) for (left, right), found
                  in tables.merges.items())
  program = np.zeros(len(tables.patterns.ops), [
      ("op", "<u4"), ("to", "<u4"), ("other", "<u4"), ("zero", "<u4"),
      ("kinds", "<u8")])
  for i, (op, to, other, kinds) in enumerate(tables.patterns.ops):
    program[i] = (op, to, other, 0, kinds)
  sections = {
      "eos": ints(vocab.eos_ids, 1), "prefix": ints(vocab.prefix, 1),
      "tokens": ints([put(t) for t in tables.texts], 2),
      "added": ints([(*put(a.text), a.id, a.number, a.special)
                     for a in tables.added], 5),
      "byte_ids": ints(tables.byte_ids, 1), "merges": ints(
          [(right, left, *found) for left, right, *found in merges], 4),
      "words": ints(tables.words, 1),
      "stages": ints(tables.patterns.starts, 1), "program": program,
      "kinds": np.array(tables.patterns.kinds, "<u8").reshape(-1, 2),
      "chat": ints([put(p.encode()) for p in chat.texts] if chat else [], 2)}
  sections["bytes"] = np.frombuffer(bytes(texts), np.uint8)
  if len(texts) >= 1 << 32:
    raise UserError("two-file export: the vocabulary is too large")
  return sections, (_CUT * tables.cut | _DUMMY * tables.dummy
                    | _TRIM * (chat is not None and chat.trim))


def _weights(config: ModelConfig, params: Params, *, where: str
             ) -> Iterator[tuple[np.ndarray, bool]]:
  """The tensors in their order, and whether each is a kernel."""
  c = config

  def read(*path: str, layer: int | None = None) -> np.ndarray:
    x: Any = params
    for name in path:
      if name not in x:
        raise UserError(f"{where}: the parameters lack {'.'.join(path)}")
      x = x[name]
    x = np.asarray(jax.device_get(x if layer is None else x[layer]),
                   np.float32)
    if not np.isfinite(x).all():
      raise UserError(f"{where}: {'.'.join(path)} holds NaN or infinity: export"
                      " an earlier checkpoint")
    return x

  yield read("final_norm", "scale"), False
  for layer in range(c.num_layers):
    def of(*path, layer=layer):
      return read("layers", *path, layer=layer)
    yield of("attention_norm", "scale"), False
    yield of("mlp_norm", "scale"), False
    if c.qk_norm:
      yield of("attention", "q_norm"), False
      yield of("attention", "k_norm"), False
    if c.qkv_bias:
      yield np.concatenate([of("attention", f"{x}_bias").ravel()
                            for x in "qkv"]), False
    yield np.concatenate([of("attention", x).reshape(c.d_model, -1).T
                          for x in "qkv"]), True
    yield of("attention", "o").reshape(-1, c.d_model).T, True
    yield np.concatenate([of("mlp", x).T for x in ("gate", "up")]), True
    yield of("mlp", "down").T, True
  yield read("embed", "table")[:c.vocab_size], True
  if not c.tied:
    yield read("head", "kernel")[:, :c.vocab_size].T, True


def _write(folder: pathlib.Path, config: ModelConfig,
           sections: Mapping[str, np.ndarray], *, flags: int, group: int,
           weights: Iterator[tuple[np.ndarray, bool]], quantised: bool) -> None:
  """Writes both files beside their places, then moves them there."""
  c = config
  code = pathlib.Path(__file__).with_name("run.c")
  made = {name: folder / f"{name}.{os.getpid()}.tmp"
          for name in ("model.bin", "run.c")}
  table, at = {}, _up(struct.calcsize(_HEADER) + 16 * len(SECTIONS))
  try:
    with open(made["model.bin"], "wb") as f:
      for name, size in SECTIONS.items():
        table[name] = [at, 0]
        if name == "weights":
          break
        raw = np.ascontiguousarray(sections[name])
        f.seek(at)
        f.write(raw)
        table[name][1] = raw.nbytes // size
        at = _up(at + raw.nbytes)
      for tensor, is_kernel in weights:
        arrays = (quantise(tensor, group) if quantised and is_kernel
                  else (tensor.astype("<f4"),))
        for x in arrays:
          f.seek(at)
          f.write(np.ascontiguousarray(x))
          at = _up(at + x.nbytes)
      table["weights"][1] = at - table["weights"][0]
      f.truncate(at)
      listed = b"".join(struct.pack("<2Q", *table[n]) for n in SECTIONS)
      f.seek(struct.calcsize(_HEADER))
      f.write(listed)
    header = struct.pack(
        _HEADER[:-1], _MAGIC, _VERSION, flags, group, c.vocab_size, c.d_model,
        c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.d_mlp,
        c.max_length, min(c.window or 0, c.max_length), c.norm_eps,
        c.logit_cap or 0.0, at)
    with open(made["model.bin"], "r+b") as f:
      f.write(header)
      f.seek(struct.calcsize(_HEADER))
      total = checksum(header + f.read(table["rope"][0] - f.tell()))
      f.seek(len(header))
      f.write(struct.pack("<Q", total))
      f.flush()
      os.fsync(f.fileno())
    shutil.copyfile(code, made["run.c"])
    for name, partial in made.items():
      os.replace(partial, folder / name)
  finally:
    for partial in made.values():
      partial.unlink(missing_ok=True)


def _up(offset: int) -> int:
  return -(-offset // 64) * 64


def quantise(kernel: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
  """uint8 weights + 128, and float32 scales of each `group` in a row."""
  rows, cols = kernel.shape
  groups = kernel.reshape(rows, cols // group, group)
  scale = np.abs(groups).max(-1, keepdims=True) / 127
  whole = np.rint(groups / np.where(scale > 0, scale, 1))
  return ((whole + 128).astype(np.uint8).reshape(rows, cols),
          scale[..., 0].astype("<f4"))


def checksum(raw: bytes) -> int:
  """FNV-1a of the words of eight bytes."""
  total = 0xCBF29CE484222325
  for word in np.frombuffer(raw, "<u8").tolist():
    total = (total ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
  return total
