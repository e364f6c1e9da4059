"""Hugging Face's config.json and our `ModelConfig`, in both directions.

What changes the computation and is not ours is refused by its name, rather than
ignored: a model that computes something else would be worse than none.
"""

from collections.abc import Mapping
import math
import re
from typing import Any

from lm.model import ModelConfig
from lm.types import UserError

# What a class says where its config.json does not; from transformers 5.
_COMMON = dict(num_key_value_heads=None, head_dim=None, rms_norm_eps=1e-6,
               sliding_window=None)
CLASSES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _COMMON | dict(max_position_embeddings=2048),
    "MistralForCausalLM": _COMMON | dict(
        max_position_embeddings=131072, num_key_value_heads=8,
        sliding_window=4096),
    "Qwen2ForCausalLM": _COMMON | dict(
        max_position_embeddings=32768, num_key_value_heads=32,
        sliding_window=4096),
    "Qwen3ForCausalLM": _COMMON | dict(
        max_position_embeddings=32768, num_key_value_heads=32, head_dim=128,
        sliding_window=4096),
}
_TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
          "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Fields that are read below.
_READ = {
    "architectures", "model_type", "vocab_size", "hidden_size",
    "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
    "rms_norm_eps", "tie_word_embeddings", "hidden_act", "rope_theta",
    "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "original_max_position_embeddings"}
# Fields that do not change what a given text's logits are: training, how much
# is returned, where it came from, and how text was generated.
_IGNORED = {
    "attention_dropout", "initializer_range", "use_cache", "pretraining_tp",
    "torch_dtype", "dtype", "transformers_version", "bos_token_id",
    "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "cls_token_id", "decoder_start_token_id", "output_attentions",
    "output_hidden_states", "return_dict",
    "return_dict_in_generate", "output_scores", "torchscript",
    "id2label", "label2id", "num_labels", "problem_type", "tokenizer_class",
    "prefix", "task_specific_params", "finetuning_task", "is_llama_config",
    "transformers.js_config", "chunk_size_feed_forward", "do_sample",
    "max_length", "min_length", "num_beams", "num_beam_groups", "temperature",
    "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "diversity_penalty", "num_return_sequences", "early_stopping",
    "tie_encoder_decoder", "max_sequence_length", "is_decoder"}
# Private or of a tool at the start; dropout is for training.
_IGNORED_RE = re.compile(r"^_|^unsloth|dropout$|pdrop$")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor",
           "original_max_position_embeddings")


def read(fields: Mapping[str, Any], *, where: str) -> ModelConfig:
  """The model that a config.json describes.

  Args:
    fields: the file's content; forms of transformers 4 and 5 are understood.
    where: the file, for errors.

  Raises:
    UserError: another architecture, or a field that our blocks cannot say, or
      one that is missing, of the wrong type, or unknown; it is named.
  """
  kind = _class(fields, where)
  known = CLASSES[kind] | {
      k: v for k, v in fields.items() if v is not None or k in (
          "num_key_value_heads", "head_dim", "sliding_window")}
  _refuse(known, kind, where)

  def number(name: str, types: tuple[type, ...] = (int,)) -> Any:
    if name not in known:
      raise UserError(f"{where} has no {name!r}")
    value = known[name]
    if not isinstance(value, types) or not _finite(value):
      raise UserError(f"{where}: {name}={str(value)[:40]} is not a number")
    return value

  d, heads = number("hidden_size"), number("num_attention_heads")
  if heads < 1:
    raise UserError(f"{where}: num_attention_heads={heads}: at least 1")
  for name in ("num_hidden_layers", "max_position_embeddings"):
    number(name)
  for name, default in (("num_key_value_heads", heads),
                        ("head_dim", d // heads)):
    if known[name] is None:
      known[name] = default
  theta, scaling = _rope(known, where)
  tied = known.get("tie_word_embeddings", False)
  if not isinstance(tied, bool):
    raise UserError(f"{where}: tie_word_embeddings={tied!r} is neither true nor"
                    " false")
  if number("rms_norm_eps", (int, float)) <= 0:
    raise UserError(f"{where}: rms_norm_eps must be a positive number")
  try:
    return ModelConfig(
        vocab_size=number("vocab_size"), d_model=d,
        num_layers=number("num_hidden_layers"), num_heads=heads,
        num_kv_heads=number("num_key_value_heads"),
        head_dim=number("head_dim"), d_mlp=number("intermediate_size"),
        max_length=number("max_position_embeddings"), rope_theta=theta,
        rope_scaling=scaling, window=_window(known, kind, where),
        qk_norm=kind == "Qwen3ForCausalLM",
        qkv_bias=kind == "Qwen2ForCausalLM",
        tied=tied,
        norm_eps=float(number("rms_norm_eps", (int, float))))
  except UserError as e:
    raise e if str(e).startswith(where) else UserError(f"{where}: {e}") from e


def _finite(value: Any) -> bool:
  """Whether it is a number that a float can hold."""
  try:
    return not isinstance(value, bool) and math.isfinite(value)
  except (OverflowError, TypeError):
    return False


def _class(fields: Mapping[str, Any], where: str) -> str:
  names = fields.get("architectures") or [
      _TYPES.get(str(fields.get("model_type")), fields.get("model_type"))]
  kind = names[0] if isinstance(names, list) and len(names) == 1 else names
  if not isinstance(kind, str) or kind not in CLASSES:
    raise UserError(f"{where}: the architecture {kind!r} is not ours: there are"
                    f" {', '.join(CLASSES)}")
  return kind


def _refuse(known: Mapping[str, Any], kind: str, where: str) -> None:
  """Raises if a field asks for what our blocks do not compute."""
  act = known.get("hidden_act", "silu")
  if act not in ("silu", "swish"):
    raise UserError(f"{where}: hidden_act={act!r}: our MLP is a SwiGLU, of"
                    " silu")
  if known.get("partial_rotary_factor", 1.0) != 1.0:
    raise UserError(f"{where}: partial_rotary_factor="
                    f"{known['partial_rotary_factor']!r}: we rotate the whole"
                    " head")
  for name, value in known.items():
    if name in _READ or name in _IGNORED or _IGNORED_RE.search(name):
      continue
    if value is False or value in (None, "", [], {}):
      continue
    if name in ("attention_bias", "mlp_bias"):
      raise UserError(f"{where}: {name}={value!r}: a {kind} with biases there"
                      " is not ours; only Qwen2's, on q, k and v, are")
    if name == "quantization_config":
      raise UserError(f"{where}: quantization_config: the weights are"
                      " quantised; get the model in bfloat16 or float32")
    raise UserError(
        f"{where}: {name}={value!r} is not known here and may change what"
        " the model computes; if it does not, take it out of the file")


def _rope(known: Mapping[str, Any], where: str):
  """The base of the frequencies, and Llama 3.1's scaling or None."""
  # As transformers 5 reads old files: the older name wins, if there.
  rope = known.get("rope_scaling") or known.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise UserError(f"{where}: rope_scaling={rope!r} is not an object")
  rope = {k: v for k, v in rope.items() if v is not None}
  kind = rope.pop("rope_type", rope.pop("type", "default"))
  rope.pop("type", None)
  theta = rope.pop("rope_theta", known.get("rope_theta", 10_000.0))
  if rope.pop("partial_rotary_factor", 1.0) != 1.0:
    raise UserError(f"{where}: partial_rotary_factor: we rotate the whole head")
  allowed: tuple[str, ...] = ()
  if kind == "llama3":
    allowed = _LLAMA3
    if "original_max_position_embeddings" in known:
      rope[_LLAMA3[3]] = known["original_max_position_embeddings"]
    rope.setdefault(_LLAMA3[3], known["max_position_embeddings"])
  elif kind != "default":
    raise UserError(f"{where}: rope_type={kind!r} is not ours: there are"
                    " 'default' and 'llama3'")
  unknown = sorted(set(rope) - set(allowed))
  if unknown:
    raise UserError(f"{where}: {unknown[0]}={rope[unknown[0]]!r} of its"
                    f" rope_parameters is not known for rope_type={kind!r}")
  values = {"rope_theta": theta} | {k: rope.get(k) for k in allowed}
  for name, value in values.items():
    if not _finite(value) or value <= 0:
      raise UserError(f"{where}: {name}={str(value)[:40]} of its"
                      " rope_parameters must be a positive number")
  if not allowed:
    return float(theta), None
  factor, low, high, original = (values[k] for k in _LLAMA3)
  return float(theta), (float(factor), float(low), float(high), int(original))


def _window(known: Mapping[str, Any], kind: str, where: str) -> int | None:
  """The window, if all layers have the same one."""
  window, layers = known["sliding_window"], known["num_hidden_layers"]
  types = known.get("layer_types")
  if kind == "LlamaForCausalLM":
    if window:
      raise UserError(f"{where}: sliding_window={window!r}: a {kind} has none;"
                      " is it a MistralForCausalLM?")
    default = "full_attention"
  elif kind == "MistralForCausalLM":
    default = "full_attention" if window is None else "sliding_attention"
  else:
    window = window if known.get("use_sliding_window", False) else None
    full = known.get("max_window_layers", 28)
    if not isinstance(full, int):
      raise UserError(f"{where}: max_window_layers={full!r} is not a number")
    default = "full_attention"
    if window is not None and types is None:
      if 0 < full < layers:
        raise UserError(
            f"{where}: max_window_layers={full} of {layers} layers: all our"
            " layers have the same window")
      default = "sliding_attention" if full <= 0 else default
  found = set(map(str, types)) if isinstance(types, list) and types else {
      default}
  if not isinstance(types, (list, type(None))) or len(found) > 1 or (
      kind in ("LlamaForCausalLM", "MistralForCausalLM")
      and found != {default}) or found - {"full_attention",
                                          "sliding_attention"}:
    raise UserError(f"{where}: layer_types={types!r}: all our layers have"
                    " the same window, or none")
  if found == {"full_attention"}:
    return None
  if isinstance(window, bool) or not isinstance(window, int) or window < 1:
    raise UserError(f"{where}: sliding_window={window!r} must be a positive"
                    " number")
  return window


# -------------------------------------------------------------------- outwards


def write(config: ModelConfig, *, dtype: str, bos_id: int | None = None,
          eos_ids: tuple[int, ...] = ()) -> dict[str, Any]:
  """The config.json of a model; the class is the one that can say it.

  Args:
    config: of the model; a scalar head is not spoken of.
    dtype: of the weights.
    bos_id: the beginning of a text, if the vocabulary has one.
    eos_ids: all ids that end a text.

  Returns:
    The fields, in the forms of transformers 4 and 5.

  Raises:
    UserError: no class of Hugging Face's can say a field; it is named.
  """
  c = config
  if c.logit_cap is not None:
    raise UserError("model.logit_cap: no class of Hugging Face's Llama family"
                    " caps the logits; train without it to export")
  if c.qkv_bias and c.qk_norm:
    raise UserError("model.qkv_bias and model.qk_norm: no class of Hugging"
                    " Face's Llama family has both; train with one to export")
  rope: dict[str, Any] = {"rope_type": "default"}
  if c.rope_scaling is not None:
    rope = {"rope_type": "llama3",
            **dict(zip(_LLAMA3, c.rope_scaling, strict=True))}
  kind = _class_of(c)
  fields = {
      "architectures": [kind],
      "model_type": next(k for k, v in _TYPES.items() if v == kind),
      "vocab_size": c.vocab_size, "hidden_size": c.d_model,
      "intermediate_size": c.d_mlp, "num_hidden_layers": c.num_layers,
      "num_attention_heads": c.num_heads,
      "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
      "hidden_act": "silu", "max_position_embeddings": c.max_length,
      "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied,
      # The first two are read by transformers 4, the third by 5.
      "rope_theta": c.rope_theta,
      "rope_scaling": None if c.rope_scaling is None else rope,
      "rope_parameters": {**rope, "rope_theta": c.rope_theta},
      "attention_dropout": 0.0, "use_cache": True,
      "bos_token_id": bos_id, "eos_token_id": (
          list(eos_ids) if len(eos_ids) > 1 else eos_ids[0] if eos_ids
          else None),
      "pad_token_id": None, "torch_dtype": dtype,
  }
  if kind == "MistralForCausalLM":
    fields["sliding_window"] = c.window
  elif kind == "LlamaForCausalLM":
    fields |= {"attention_bias": False, "mlp_bias": False}
  else:
    layers = ("full_attention" if c.window is None else "sliding_attention")
    fields |= {
        "use_sliding_window": c.window is not None, "sliding_window": c.window,
        "max_window_layers": c.num_layers if c.window is None else 0,
        "layer_types": [layers] * c.num_layers}
    if kind == "Qwen3ForCausalLM":
      fields["attention_bias"] = False
  return fields


def _class_of(c: ModelConfig) -> str:
  if c.qkv_bias:
    return "Qwen2ForCausalLM"
  if c.qk_norm:
    return "Qwen3ForCausalLM"
  # Llama's wants heads that divide the width; Mistral's without a window is
  # the same.
  if c.window is not None or c.d_model % c.num_heads:
    return "MistralForCausalLM"
  return "LlamaForCausalLM"
