"""Tokenizers in Hugging Face's folders: reading and writing.

A folder holds tokenizer.json (or only SentencePiece's tokenizer.model), and in
tokenizer_config.json, special_tokens_map.json, generation_config.json,
config.json and chat_template.jinja which tokens begin and end a text and how a
dialogue is written.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

from lm import paths
from lm.data import bpe_build, bpe_gguf
from lm.types import UserError

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_GENERATION = "generation_config.json"
# What ends a text where no file says so.
_KNOWN_ENDS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>")


def read(folder: str | os.PathLike, make: Any) -> Any:
  """The tokenizer of a folder.

  Args:
    folder: the folder.
    make: `HuggingFaceVocab`.

  Raises:
    UserError: none there, or one that is not whole; the line names the file.
  """
  folder = paths.path(folder)
  settings = {**_object(folder / "special_tokens_map.json"),
              **_object(folder / _CONFIG)}
  spec, config, file = None, {}, folder / _JSON
  if (raw := _bytes(file)) is not None:
    spec = _parsed(raw, file)
  elif (raw := _bytes(file := folder / _MODEL)) is not None:
    try:
      spec, config = bpe_build.sentencepiece_parts(raw)
    except UserError as e:
      raise UserError(f"{file}: {e}") from e
    # Those that come as this file only begin texts as Llama does.
    settings.setdefault("add_bos_token", True)
  else:
    raise UserError(f"{folder} has no tokenizer: neither {_JSON} nor {_MODEL}"
                    " is there")
  try:
    _add_tokens(spec, settings, _object(folder / "added_tokens.json"))
    config = {**config, "chat_template": _template(folder, settings)}
    return make(spec, _config(folder, spec, settings, config))
  except UserError as e:
    if str(e).startswith(str(folder)):
      raise
    raise UserError(f"{file}: {e}") from e
  except (TypeError, AttributeError, LookupError, ValueError) as e:
    # Files of others: of all that may be there, something is of another kind.
    raise UserError(f"{file} or {_CONFIG} beside it is not built as a tokenizer"
                    f" is: {type(e).__name__}, {str(e)[:100]}") from e


def write(folder: str | os.PathLike, vocab: Any) -> None:
  """Writes a `HuggingFaceVocab` as a folder that transformers opens.

  generation_config.json, where several tokens end a text, gets only those, and
  keeps what it holds.
  """
  folder = paths.path(folder)
  paths.make(folder)
  spec, ids = vocab.spec, vocab.config
  spec["post_processor"] = _adds(vocab) or spec.get("post_processor")
  settings = {"tokenizer_class": "PreTrainedTokenizerFast",
              "clean_up_tokenization_spaces": False,
              "model_max_length": 10 ** 30, "add_eos_token": False,
              "add_bos_token": bool(vocab.prefix)}
  for name, i in (("bos", ids["bos_id"]), ("eos", vocab.eos_id),
                  ("pad", ids["pad_id"]), ("unk", ids["unk_id"])):
    if i is not None:
      settings[f"{name}_token"] = vocab.piece(i)
  if vocab.chat_template is not None:
    # Both places: older readers know the first, newer ones prefer the second.
    settings["chat_template"] = vocab.chat_template
    paths.write_bytes(folder / _TEMPLATE, vocab.chat_template.encode())
  else:
    paths.remove(folder / _TEMPLATE)
  generation = _object(folder / _GENERATION)
  generation["eos_token_id"] = (
      list(vocab.eos_ids) if len(vocab.eos_ids) > 1 else vocab.eos_id)
  if ids["bos_id"] is not None:
    generation["bos_token_id"] = ids["bos_id"]
  for name, value in ((_JSON, spec), (_CONFIG, settings),
                      (_GENERATION, generation)):
    text = json.dumps(value, ensure_ascii=False, indent=1)
    paths.write_bytes(folder / name, text.encode())


def _adds(vocab: Any) -> dict[str, Any] | None:
  """The post-processor that puts the prefix before a text, if there is one."""
  if not vocab.prefix:
    return None
  names = [vocab.piece(i) for i in vocab.prefix]
  first = [{"SpecialToken": {"id": n, "type_id": 0}} for n in names]
  text = lambda x, n: {"Sequence": {"id": x, "type_id": n}}
  return {
      "type": "TemplateProcessing", "single": [*first, text("A", 0)],
      "pair": [*first, text("A", 0), text("B", 1)],
      "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]}
                         for n, i in zip(names, vocab.prefix)}}


def _config(folder, spec, settings: Mapping[str, Any],
            config: Mapping[str, Any]) -> dict[str, Any]:
  """The `config` of a HuggingFaceVocab; adds what is special to `spec`."""
  ids = _ids(spec)
  found: dict[str, Any] = {"prefix": [], **config}
  for name in ("bos", "eos", "pad", "unk"):
    token = _name(settings.get(f"{name}_token"))
    if token is None:
      continue
    if not isinstance(token, str) or token not in ids:
      raise UserError(f"{folder / _CONFIG} names {token!r} as its {name}_token,"
                      " which the tokenizer does not have")
    if name == "eos":
      found["eos_ids"] = [ids[token]]
    else:
      found[f"{name}_id"] = ids[token]
  eos = list(found.get("eos_ids") or ())
  for name in (_GENERATION, "config.json"):
    more = _object(folder / name).get("eos_token_id")
    if more is not None:
      eos += more if isinstance(more, list) else [more]
      break
  special = {t["content"]: t["id"] for t in spec["added_tokens"]
             if t["special"]}
  eos += bpe_gguf.ends(special, config["chat_template"]) if eos else []
  eos = eos or [ids[t] for t in _KNOWN_ENDS if t in special][:1]
  found["eos_ids"] = eos
  by_id = {i: t for t, i in ids.items()}
  names = [by_id[i] for i in (*eos, found.get("bos_id"))
           if type(i) is int and i in by_id]
  names += [t for more in settings.get("additional_special_tokens") or ()
            if (t := _name(more)) in ids]
  _make_special(spec, ids, names)
  found["prefix"] = _prefix(spec, settings, found)
  return found


def _name(token: Any) -> Any:
  """A token as the files name it: its text, or an object with that."""
  return token.get("content") if isinstance(token, Mapping) else token


def _prefix(spec, settings, found) -> list[int]:
  """Ids before a text: by the post-processor, else by `add_bos_token`."""
  bos, post = found.get("bos_id"), spec.get("post_processor") or {}
  prefix, told = [], False
  for step in post.get("processors") or [post]:
    if step.get("type") != "TemplateProcessing":
      continue
    told = True
    for item in step.get("single") or ():
      if "SpecialToken" not in item:
        break
      prefix += step["special_tokens"][item["SpecialToken"]["id"]]["ids"]
  if not told and bos is not None and settings.get("add_bos_token") is True:
    return [bos]
  return prefix


def _ids(spec: Mapping[str, Any]) -> dict[str, int]:
  """Token -> id, of any type of model."""
  vocab = spec["model"].get("vocab") or {}
  ids = (dict(vocab) if isinstance(vocab, Mapping)
         else {entry[0]: i for i, entry in enumerate(vocab)})
  return {**ids, **{t["content"]: t["id"] for t in spec["added_tokens"]}}


def _make_special(spec: dict[str, Any], ids, names: list[str]) -> None:
  added = {t["content"]: dict(t) for t in spec["added_tokens"]}
  for name in names:
    entry = added.setdefault(
        name, bpe_build.added_token(ids[name], name, special=True))
    entry["special"] = True
  spec["added_tokens"] = sorted(added.values(), key=lambda t: t["id"])


def _add_tokens(spec: Any, settings, more: Mapping[str, Any]) -> None:
  """Adds the tokens that only tokenizer_config.json or added_tokens.json has.

  Args:
    spec: of tokenizer.json; gets a sorted list of added tokens.
    settings: of tokenizer_config.json.
    more: of added_tokens.json, token -> id.
  """
  if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
    raise UserError("not a tokenizer: it has no 'model'")
  if not isinstance(spec["model"].get("vocab"), (dict, list)):
    raise UserError("not a tokenizer: its model has no 'vocab'")
  added = spec.get("added_tokens") or []
  try:
    taken = {t["content"] for t in added} | {t["id"] for t in added}
    decoder = settings.get("added_tokens_decoder") or {}
    extra = [{**bpe_build.added_token(int(i), t["content"], special=False),
              **{k: bool(t[k]) for k in (
                  "special", "normalized", "lstrip", "rstrip", "single_word")
                 if k in t}} for i, t in decoder.items()]
    extra += [bpe_build.added_token(int(i), t, special=False)
              for t, i in more.items()
              if t not in {e["content"] for e in extra}]
    added = [*added, *(t for t in extra if t["content"] not in taken
                       and t["id"] not in taken)]
    spec["added_tokens"] = sorted(added, key=lambda t: t["id"])
    bad = [t["content"] for t in added if type(t["special"]) is not bool]
  except (KeyError, TypeError, ValueError, AttributeError) as e:
    raise UserError("the added tokens of the tokenizer are not whole") from e
  if bad:
    raise UserError("the added tokens of the tokenizer are not whole")


def _template(folder: Any, settings: Mapping[str, Any]) -> str | None:
  """The chat template: of its own file, or of tokenizer_config.json."""
  raw = _bytes(folder / _TEMPLATE)
  if raw is not None:
    try:
      return raw.decode()
    except UnicodeDecodeError as e:
      raise UserError(f"{folder / _TEMPLATE} is not UTF-8") from e
  template = settings.get("chat_template")
  if template is None:
    template = _object(folder / "chat_template.json").get("chat_template")
  if isinstance(template, list):
    named = {t.get("name"): t.get("template") for t in template
             if isinstance(t, Mapping)}
    template = named.get("default") or next(iter(named.values()), None)
  if template is not None and not isinstance(template, str):
    raise UserError(f"{folder / _CONFIG}: its chat_template is not a text")
  return template


def _bytes(path: Any) -> bytes | None:
  try:
    return paths.read_bytes(path)
  except FileNotFoundError:
    return None
  except OSError as e:
    raise UserError(f"{path} cannot be read: {e.strerror or e}") from e


def _parsed(raw: bytes, path: Any) -> Any:
  try:
    return json.loads(raw)
  except (ValueError, RecursionError) as e:
    line = " ".join(str(e).split())
    raise UserError(f"{path} is not whole JSON: {line}") from e


def _object(path: Any) -> dict[str, Any]:
  """A file that holds a JSON object; empty if there is no file."""
  raw = _bytes(path)
  found = {} if raw is None else _parsed(raw, path)
  if not isinstance(found, dict):
    raise UserError(f"{path} does not hold a JSON object")
  return found
