"""The tokenizer that the fields of a GGUF file describe."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.data import bpe_build as build
from lm.types import UserError

_MODEL = "tokenizer.ggml.model"
_GPT2 = [{"type": "ByteLevel", "add_prefix_space": False,
          "trim_offsets": False, "use_regex": True}]
# Every digit for itself, then GPT-2's rule: StarCoder's way.
_DIGITS = [{"type": "Digits", "individual_digits": True}, *_GPT2]


def _pattern(digits: str) -> list[dict[str, Any]]:
  """Llama 3's rule, as GPT-4's: words, some digits, punctuation, spaces."""
  rule = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
          + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
  return [{"type": "Split", "pattern": {"Regex": rule},
           "behavior": "Isolated", "invert": False},
          {**_GPT2[0], "use_regex": False}]


# Name in `.pre` -> (pretokenizers, normalizer, whole words need no merges).
_LLAMA3 = (_pattern(r"\p{N}{1,3}"), None, True)
_QWEN2 = (_pattern(r"\p{N}"), {"type": "NFC"}, False)
_PRE: dict[str, tuple[list[dict[str, Any]], Any, bool]] = {
    "default": (_GPT2, None, False), "gpt-2": (_GPT2, None, False),
    "smollm": (_DIGITS, None, False), "starcoder": (_DIGITS, None, False),
    "refact": (_DIGITS, None, False), "codeshell": (_DIGITS, None, False),
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2,
}
# Control tokens that end a turn or a text wherever they are used.
_ENDS_TURN = ("<|im_end|>", "<|eot_id|>")
_ENDS_TEXT = ("<|endoftext|>", "<|end_of_text|>")


def parts(fields: Mapping[str, Any]) -> tuple[dict, dict]:
  """(spec, config) of `HuggingFaceVocab`.

  Args:
    fields: the file's fields, as plain Python values.

  Raises:
    UserError: a kind of tokenizer that is not known here, or broken fields.
  """
  model = fields.get(_MODEL)
  tokens = _list(fields, "tokens", str)
  if not tokens:
    raise UserError("the file holds no tokenizer: tokenizer.ggml.tokens is"
                    " missing")
  kinds = _list(fields, "token_type", int) or [build.NORMAL] * len(tokens)
  if len(kinds) != len(tokens):
    raise UserError(f"tokenizer.ggml.token_type has {len(kinds)} entries for"
                    f" {len(tokens)} tokens")
  config = _config(fields, tokens, kinds)
  # A token that begins or ends texts is one that no text may hold.
  for i in (config["bos_id"], *config["eos_ids"]):
    if i is not None and kinds[i] == build.NORMAL:
      kinds[i] = build.CONTROL
  if model == "gpt2":
    return _byte_level(fields, tokens, kinds), config
  if model == "llama":
    return _sentencepiece(fields, tokens, kinds), config
  raise UserError(f"{_MODEL} is {model!r}; known are gpt2 and llama")


def ends(tokens: Mapping[str, int], template: str | None) -> list[int]:
  """Ids of the control tokens that are known to end turns or texts.

  Args:
    tokens: text -> id of the control tokens.
    template: the chat template; without one all turns may end so.
  """
  return [tokens[t] for t in (*_ENDS_TURN, *_ENDS_TEXT) if t in tokens and (
      t in _ENDS_TEXT or template is None or t in template)]


def _byte_level(fields, tokens, kinds) -> dict[str, Any]:
  pre = fields.get("tokenizer.ggml.pre")
  if pre is None:
    raise UserError("it has no tokenizer.ggml.pre, without which texts may be"
                    " cut wrongly: convert the model again")
  if pre not in _PRE:
    raise UserError(f"tokenizer.ggml.pre is {pre!r}; known are"
                    f" {', '.join(_PRE)}")
  pretokenizers, normalizer, ignore_merges = _PRE[pre]
  ids, merges = build.unique(tokens), []
  for merge in _list(fields, "merges", str):
    left, _, right = merge.partition(" ")
    for token in (left, right, left + right):
      if token not in ids:
        raise UserError(f"the merge {merge!r} names {token!r}, which is not"
                        " one of the tokens")
    merges.append((left, right))
  return build.bpe_spec(
      ids, merges, [
          build.added_token(i, t, special=kinds[i] != build.USER)
          for i, t in enumerate(tokens)
          if kinds[i] in (build.UNKNOWN, build.CONTROL, build.USER)],
      normalizer=normalizer,
      pre_tokenizer=build.sequence("pretokenizers", pretokenizers),
      decoder={"type": "ByteLevel", "add_prefix_space": True,
               "trim_offsets": True, "use_regex": True},
      ignore_merges=ignore_merges)


def _sentencepiece(fields, tokens, kinds) -> dict[str, Any]:
  scores = _list(fields, "scores", float)
  if len(scores) != len(tokens):
    raise UserError(f"tokenizer.ggml.scores has {len(scores)} entries for"
                    f" {len(tokens)} tokens")
  return build.spaced_parts(
      list(zip(tokens, scores, kinds)),
      dummy_prefix=bool(fields.get("tokenizer.ggml.add_space_prefix", True)))


def _config(fields, tokens: Sequence[str], kinds) -> dict[str, Any]:
  def one(name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    i = fields.get(key)
    if i is None:
      return None
    if type(i) is not int or not 0 <= i < len(tokens):
      raise UserError(f"{key} is {i!r}, and there are {len(tokens)} tokens")
    return i

  template = fields.get("tokenizer.chat_template")
  if template is not None and not isinstance(template, str):
    raise UserError("tokenizer.chat_template is not a text")
  controls = {t: i for i, t in enumerate(tokens) if kinds[i] == build.CONTROL}
  ended = [i for i in (one("eos"), one("eot")) if i is not None]
  bos = one("bos")
  default = (fields.get(_MODEL) == "llama"
             or _PRE.get(fields.get("tokenizer.ggml.pre")) is _LLAMA3)
  begins = bos is not None and bool(
      fields.get("tokenizer.ggml.add_bos_token", default))
  return {"eos_ids": [*ended, *ends(controls, template)], "bos_id": bos,
          "prefix": [bos] if begins else [], "unk_id": one("unknown"),
          "pad_id": one("padding"), "chat_template": template}


def _list(fields, name: str, kind: type) -> list:
  """A field that is a list of strings or numbers; empty if missing."""
  values = fields.get(f"tokenizer.ggml.{name}")
  if values is None:
    return []
  allowed = (int, float) if kind is float else (kind,)
  if not isinstance(values, (list, tuple)) or not all(
      type(v) in allowed for v in values):
    raise UserError(f"tokenizer.ggml.{name} is not a list of"
                    f" {kind.__name__} values")
  return list(values)
