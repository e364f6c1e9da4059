"""Models in GGUF, the format of llama.cpp: a file of one into our parameters.

What the file says of the computation is either understood or refused: a key
that is ignored would give a model that answers, and answers wrongly.
"""

import collections
from collections.abc import Callable
from concurrent import futures
import dataclasses
import functools
import math
import os
import re
from typing import Any

import numpy as np

from lm.data import bpe
from lm.interop import gguf_file, layouts
from lm.model import ModelConfig
from lm.types import Params, UserError

# Architectures, and whether the rotary halves of q and k are interleaved.
# Mistral's models are written as `llama`.
_INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}

# Tensors by the names of llama.cpp: those of Hugging Face.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.([a-z_]+)\.(weight|bias)")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"

# Keys of an architecture that become fields of the config.
_USED = (
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "vocab_size",
)
# Keys with the values under which the computation is ours; None: whatever.
_NEUTRAL: dict[str, tuple | None] = {
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.type": ("none",),
    "tensor_data_layout": None,
    "use_parallel_residual": (False,),
}
_KINDS = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Gguf:
  """An open file.

  Attributes:
    config: of the model.
    source: what the file says of itself: format, file, name, licence, and how
      many tensors there are of each type.
  """
  config: ModelConfig
  source: dict[str, Any]
  _file: gguf_file.File = dataclasses.field(repr=False)

  @functools.cached_property
  def vocab(self) -> bpe.HuggingFaceVocab:
    """The tokenizer; a UserError if it is of a kind that is not known."""
    return bpe.HuggingFaceVocab.from_gguf_fields({
        key: value for key, value in self._file.fields.items()
        if key.startswith("tokenizer.")})

  def params(self, dtype: str = "float32", *,
             tick: Callable[[str], None] | None = None) -> Params:
    """The parameters, dequantized tensor by tensor and laid on the mesh.

    Args:
      dtype: float32 or bfloat16.
      tick: called with the name of each tensor that is done.

    Raises:
      UserError: tensors are missing, too many, misshapen or not finite.
    """
    arch = self._file.fields["general.architecture"]
    names = {_hugging_face(name): name for name in self._file.tensors
             if name != _FREQUENCIES}
    heads = {".q_proj.": self.config.num_heads,
             ".k_proj.": self.config.num_kv_heads}

    def read(name: str) -> np.ndarray:
      x = self._file.read(names[name])
      for part, count in heads.items():
        if _INTERLEAVED[arch] and part in name:
          # The pairs (2i, 2i + 1) of a head become (i, i + H / 2) again.
          x = x.reshape(count, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(
              x.shape)
      return x

    shapes = {ours: self._file.tensors[name].shape
              for ours, name in names.items()}
    leaves = layouts.leaves(self.config)
    order = [name for path in sorted(leaves)
             for name in leaves[path].names(self.config.num_layers)]
    with futures.ThreadPoolExecutor(1) as pool:
      return layouts.assemble(
          self.config, shapes, _ahead(read, order, pool), dtype=dtype,
          where=str(self._file.path), tick=tick)


def _ahead(read: layouts.Read, order: list[str],
           pool: futures.Executor) -> layouts.Read:
  """`read`, which makes the next tensor of `order` while one is laid out."""
  following = dict(zip(order, order[1:]))
  begun: dict[str, futures.Future] = {}

  def get(name: str) -> np.ndarray:
    found = begun.pop(name, None)
    found = pool.submit(read, name) if found is None else found
    if name in following:
      begun[following[name]] = pool.submit(read, following[name])
    return found.result()

  return get


def open_gguf(path: str | os.PathLike) -> Gguf:
  """Reads what a GGUF file says, but no weights yet.

  Raises:
    UserError: no such file, a damaged one, or a model that cannot be computed
      here exactly; the line names the key or tensor.
  """
  file = gguf_file.read_file(path)
  _check_kind(file)
  for name in file.tensors:
    if name != _FREQUENCIES:
      try:
        _hugging_face(name)
      except KeyError:
        raise UserError(f"{path}: no model known here has a tensor"
                        f" {name!r}") from None
  config = _config(file)
  about = lambda key: (value if isinstance(
      value := file.fields.get(f"general.{key}"), str) else None)
  types = collections.Counter(t.type for t in file.tensors.values())
  return Gguf(config, {
      "format": "GGUF", "file": file.path.name, "name": about("name"),
      "licence": about("license"), "types": dict(types.most_common()),
  }, file)


def _hugging_face(name: str) -> str:
  """The name of a tensor at Hugging Face; a KeyError if it has none."""
  if found := _LAYER.fullmatch(name):
    layer, part, kind = found.groups()
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
  return _NAMES[name]


def _check_kind(file: gguf_file.File) -> None:
  """Refuses what is not the whole of one language model known here."""
  get = file.fields.get
  arch = get("general.architecture")
  if arch not in _INTERLEAVED:
    raise UserError(f"{file.path} holds a model of architecture {arch!r}; known"
                    f" are {', '.join(_INTERLEAVED)}")
  if get("general.type", "model") != "model":
    raise UserError(f"{file.path}: general.type is {get('general.type')!r}, not"
                    " a model: open the file of the model itself")
  if get("split.count", 1) != 1:
    raise UserError(f"{file.path} is one of {get('split.count')} parts: join"
                    " them with llama.cpp's `llama-gguf-split --merge`")
  if get("general.quantization_version", 2) != 2:
    raise UserError(
        f"{file.path}: general.quantization_version is"
        f" {get('general.quantization_version')}, and only 2 is known: take a"
        " newer file of the model")
  for key, value in file.fields.items():
    if not key.startswith(f"{arch}."):
      continue
    rest = key.removeprefix(f"{arch}.")
    if rest in _USED:
      continue
    wanted = _NEUTRAL.get(rest, ())
    if wanted is not None and value not in wanted:
      raise UserError(
          f"{file.path}: {key} = {_short(value)} changes what the model"
          " computes in a way that is not known here")


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:60] + "..."


# --------------------------------------------------------------------- config


def _config(file: gguf_file.File) -> ModelConfig:
  arch = file.fields["general.architecture"]

  def get(key, kind, default=None):
    key = f"{arch}.{key}"
    value = file.fields.get(key, default)
    if value is None:
      raise UserError(f"{file.path} does not say {key}: convert the model"
                      " again")
    if isinstance(value, list) and len(set(map(str, value))) == 1:
      value = value[0]  # Of each layer, and the same.
    if isinstance(value, list):
      raise UserError(f"{file.path}: {key} differs from layer to layer, which"
                      " no model here does")
    if type(value) is not kind or not 0 < value < 1 << 31:
      raise UserError(f"{file.path}: {key} is {_short(value)}, not"
                      f" {_KINDS[kind]} above 0")
    return value if kind is int else float(str(np.float32(value)))

  width, heads = get("embedding_length", int), get("attention.head_count", int)
  head_dim = get("attention.key_length", int, width // heads)
  for key in ("attention.value_length", "rope.dimension_count"):
    if (size := get(key, int, head_dim)) != head_dim:
      raise UserError(f"{file.path}: {arch}.{key} is {size}, but heads are"
                      f" {head_dim} wide: they have to be the same here")
  layers = get("block_count", int)
  if layers > len(file.tensors):  # Before anything goes through them all.
    raise UserError(f"{file.path}: {arch}.block_count is {layers}, but there"
                    f" are only {len(file.tensors)} tensors")
  theta = get("rope.freq_base", float, 10_000.0)
  try:
    return ModelConfig(
        vocab_size=_vocab_size(file, get), d_model=width, num_layers=layers,
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", int, heads),
        head_dim=head_dim, d_mlp=get("feed_forward_length", int),
        max_length=get("context_length", int), rope_theta=theta,
        rope_scaling=_rope_scaling(file, theta, head_dim),
        qk_norm=arch == "qwen3",
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        tied="output.weight" not in file.tensors,
        norm_eps=get("attention.layer_norm_rms_epsilon", float))
  except UserError as e:
    text = str(e)
    raise e if text.startswith(str(file.path)) else UserError(
        f"{file.path}: {text}") from e


def _vocab_size(file: gguf_file.File, get: Callable[..., int]) -> int:
  """Rows of the embedding; there may be more of them than tokens."""
  tokens = file.fields.get("tokenizer.ggml.tokens")
  table = file.tensors.get("token_embd.weight")
  if not isinstance(tokens, list) or table is None:
    raise UserError(f"{file.path} has no "
                    + ("tensor 'token_embd.weight'" if table is None
                       else "tokenizer.ggml.tokens"))
  rows = table.shape[0]
  said = get("vocab_size", int, rows)
  if said != rows or len(tokens) > rows:
    raise UserError(f"{file.path}: tensor 'token_embd.weight' has {rows} rows"
                    f" for a vocabulary of {max(said, len(tokens))} tokens")
  return rows


def _rope_scaling(file: gguf_file.File, theta: float, head_dim: int):
  """Llama 3.1's scaling (2407.21783) of the divisors of the frequencies.

  llama.cpp keeps only what each frequency is divided by: 1 up to wavelengths of
  original / high, `factor` from original / low on, and in between 1 / (blend +
  (1 - blend) / factor), with blend = (original / wavelength - low) / (high -
  low). In all models of the kind low = 1 and high = 4; that gives `original`.
  """
  if _FREQUENCIES not in file.tensors:
    return None
  low, high = 1.0, 4.0
  if file.tensors[_FREQUENCIES].shape != (head_dim // 2,):
    raise UserError(
        f"{file.path}: tensor {_FREQUENCIES!r} has shape"
        f" {list(file.tensors[_FREQUENCIES].shape)} instead of"
        f" {[head_dim // 2]}")
  divisors = file.read(_FREQUENCIES).astype(np.float64)
  if np.all(divisors == 1):
    return None
  factor = float(divisors.max()) if np.isfinite(divisors).all() else 0.0
  freq = theta ** -(np.arange(head_dim // 2) / (head_dim // 2))
  candidates = [8192]
  for f, divisor in zip(freq, divisors, strict=True):
    if 1 < divisor < factor:
      blend = (1 / divisor - 1 / factor) / (1 - 1 / factor)
      turns = low + blend * (high - low)
      candidates.append(round(turns * 2 * math.pi / f))
  for original in candidates:
    if factor > 1:
      blend = np.clip(
          (original * freq / (2 * math.pi) - low) / (high - low), 0, 1)
      if np.allclose(divisors * (blend + (1 - blend) / factor), 1, rtol=1e-4,
                     atol=0):
        return factor, low, high, original
  raise UserError(f"{file.path}: tensor {_FREQUENCIES!r} scales the rotary"
                  " frequencies in a way that is not known here")
