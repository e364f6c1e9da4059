"""A model as two files: `model.bin`, and `run.c`, which runs it.

`cc -O3 -march=native -fopenmp run.c -lm -o run && ./run model.bin "prompt"`
needs nothing else: the file holds the weights, the vocabulary with all that its
rules need (`two_file_vocab.py`), the pieces of the chat template and the
rotations of all positions.

The layout, little-endian; each part begins at a multiple of 64 bytes:
  the header (`_HEADER`);
  texts, five numbers of 32 bits each: where the text begins in the bytes and
    its length, an id, a level and a mark. First the V tokens (the mark says
    that a text ends there), then the five pieces of a chat, then the added
    tokens (levels 0 and 1; mark 1 or 2: plain text where somebody says it, 2:
    cut after two bytes) and words that merges do not lead to (level 2);
  the bytes of all texts;
  the ids of the 256 bytes (V: none), then those at the start of a text;
  merges, by the pair's number: right, left, rank, id;
  the automata of `two_file_automaton.py`, states and characters;
  (up to here goes the checksum)
  the rotations [max_length, H], cosines and sines;
  for each layer its norms [D], [D], with qk_norm [H], [H],
    the bias of q,k,v, the kernels q,k,v [(N + 2K) H, D], o [D, N H],
    gate,up [2F, D], down [D, F];
  final_norm [D], the embeddings [V, D] and, if not tied, the head [V, D].
In int8 what has more than one row is bytes w + 128, and then a float32 scale
for each `group` of them: the weights are scale * w, with w in -127..127.
"""

from collections.abc import Iterator
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

# The magic and the checksum; flags, group, V, D, L, N, K, H, F, max_length,
# window, the numbers of texts, their bytes, ids of a prefix, merges, states,
# nodes and patterns; epsilon and the cap of the logits.
_HEADER = "<8sQ18I2f"
_MAGIC = b"lm2file2"
_QUANTISED, _TIED, _QK_NORM, _CHAT, _TRIM, _DUMMY = (1 << i for i in range(6))
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
  sections, counts = _vocabulary(tables, vocab, chat)
  flags = (_QUANTISED * (dtype == "int8") | _TIED * config.tied
           | _QK_NORM * config.qk_norm | _CHAT * (chat is not None)
           | _TRIM * (chat is not None and chat.trim) | _DUMMY * tables.dummy)
  group = _group(config) if dtype == "int8" else 1
  c = config
  numbers = [flags, group, c.vocab_size, c.d_model, c.num_layers, c.num_heads,
             c.num_kv_heads, c.head_dim, c.d_mlp, c.max_length,
             min(c.window or c.max_length, c.max_length), *counts]
  head = _head([*numbers, c.norm_eps, c.logit_cap or 0.0], sections)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, head, _tensors(config, params, where=where),
           group=group if dtype == "int8" else None)
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
                chat: two_file_chat.Pieces | None
                ) -> tuple[list[np.ndarray], list[int]]:
  """All parts between header and rotations, and their numbers of records."""
  raw = bytearray()

  def put(text: bytes, *numbers: int) -> tuple[int, ...]:
    raw.extend(text)
    return len(raw) - len(text), len(text), *numbers

  texts = [put(t, i, 0, i in vocab.eos_ids) for i, t in enumerate(tables.texts)]
  texts += [put(piece.encode(), 0, 0, 0)
            for piece in (chat.texts if chat else [""] * 5)]
  texts += [put(a.text, a.id, a.number, a.special * (1 + tables.cut))
            for a in tables.added]
  texts += [put(tables.texts[i], i, 2, 0) for i in tables.words
            if tables.texts[i]]
  if len(raw) >= 1 << 32:
    raise UserError("two-file export: the vocabulary is too large")
  # The pair is one number of 64 bits, its left the higher half.
  merges = [(right, left, *found) for (left, right), found
            in sorted(tables.merges.items())]
  patterns = tables.patterns
  sections = [
      np.array(texts, "<u4"), np.frombuffer(bytes(raw), np.uint8),
      np.array([*tables.byte_ids, *vocab.prefix], "<u4"),
      np.array(merges, "<u4"), patterns.states, patterns.chars]
  return sections, [len(texts), len(raw), len(vocab.prefix), len(merges),
                    len(patterns.states), len(patterns.chars), patterns.count]


def _head(numbers: list, sections: list[np.ndarray]) -> bytes:
  """All that the checksum goes over, and it."""
  pad = lambda x: x + bytes(-len(x) % 64)
  rest = b"".join(pad(x.tobytes()) for x in sections)
  head = lambda total: pad(struct.pack(_HEADER, _MAGIC, total, *numbers)) + rest
  return head(checksum(head(0)))


def _tensors(config: ModelConfig, params: Params, *, where: str
             ) -> Iterator[np.ndarray]:
  """The rotations, then the weights in their order."""
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

  cos, sin = rope_table(c, jnp.arange(c.max_length)[None])
  yield np.concatenate([cos[0], sin[0]], -1).ravel()
  for layer in range(c.num_layers):
    def of(*path, layer=layer):
      return read("layers", *path, layer=layer)
    yield of("attention_norm", "scale")
    yield of("mlp_norm", "scale")
    if c.qk_norm:
      yield of("attention", "q_norm")
      yield of("attention", "k_norm")
    if c.qkv_bias:
      yield np.concatenate([of("attention", f"{x}_bias").ravel()
                            for x in "qkv"])
    else:
      yield np.zeros((c.num_heads + 2 * c.num_kv_heads) * c.head_dim)
    yield np.concatenate([of("attention", x).reshape(c.d_model, -1).T
                          for x in "qkv"])
    yield of("attention", "o").reshape(-1, c.d_model).T
    yield np.concatenate([of("mlp", x).T for x in ("gate", "up")])
    yield of("mlp", "down").T
  yield read("final_norm", "scale")
  yield read("embed", "table")[:c.vocab_size]
  if not c.tied:
    yield read("head", "kernel")[:, :c.vocab_size].T


def _write(folder: pathlib.Path, head: bytes, tensors: Iterator[np.ndarray],
           *, group: int | None) -> None:
  """Writes both files beside their places, then moves them there."""
  code = pathlib.Path(__file__).with_name("run.c")
  made = {name: folder / f"{name}.{os.getpid()}.tmp"
          for name in ("model.bin", "run.c")}
  try:
    with open(made["model.bin"], "wb") as f:
      f.write(head)
      for x in tensors:
        parts = (quantise(x, group) if group and x.ndim == 2 and len(x) > 1
                 else (x.astype("<f4"),))
        for part in parts:
          f.write(np.ascontiguousarray(part))
          f.write(bytes(-part.nbytes % 64))
      f.flush()
      os.fsync(f.fileno())
    shutil.copyfile(code, made["run.c"])
    for name, partial in made.items():
      os.replace(partial, folder / name)
  finally:
    for partial in made.values():
      partial.unlink(missing_ok=True)


def quantise(kernel: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
  """uint8 weights + 128, and float32 scales of each `group` in a row."""
  rows, cols = kernel.shape
  groups = kernel.reshape(rows, cols // group, group)
  scale = np.abs(groups).max(-1, keepdims=True) / 127
  whole = np.rint(groups / np.where(scale > 0, scale, 1))
  return ((whole + 128).astype(np.uint8).reshape(rows, cols),
          scale[..., 0].astype("<f4"))


def checksum(raw: bytes) -> int:
  """FNV-1a of the words of eight bytes, but the second, where it stands."""
  total = 0xCBF29CE484222325
  for i, word in enumerate(np.frombuffer(raw, "<u8").tolist()):
    if i != 1:
      total = (total ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
  return total
