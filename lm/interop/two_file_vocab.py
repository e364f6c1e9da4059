"""A tokenizer as tables that a small C program can follow.

What `run.c` knows: added tokens cut a text first; patterns, compiled here to a
finite automaton, cut the rest; in each part the best of a
table of merges is done again and again, from bytes on. Everything else about a
tokenizer is folded into these tables, or refused.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
from typing import Any

from lm.data import bpe
from lm.data.vocab import SPECIALS, Vocab
from lm.interop import two_file_automaton as automaton
from lm.interop import two_file_pattern as pattern_lib
from lm.types import UserError

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
         r"|\s+(?!\S)|\s+")
_SPACE = "\u2581"
_LONGEST = 1 << 16  # Bytes of a piece.


@dataclasses.dataclass(frozen=True)
class Added:
  """A token that is found in a text before anything else is done with it."""

  text: bytes
  id: int
  number: int  # 0: of the first pass over the text, 1: of the second.
  special: bool  # Plain text inside of what somebody said.


@dataclasses.dataclass(frozen=True)
class Tables:
  """All that `run.c` needs to know of a vocabulary of V ids.

  Attributes:
    texts: the bytes that each id writes; none for control tokens.
    added: longest first.
    byte_ids: the token that each byte begins as; V: it is left out.
    merges: (left, right) -> (rank, id), the lowest rank first. Ids from V on
      are parts of a character, which exist while merging only.
    words: ids of the texts that are one token though no merges lead there.
    patterns: cut a text, each what the one before has left whole.
    cut: a special token that is plain text is cut after two bytes.
    dummy: a space is put before each part of a text.
    composed: the tokenizer normalises to NFC, which `run.c` leaves to others.
  """

  texts: list[bytes]
  added: list[Added]
  byte_ids: list[int]
  merges: dict[tuple[int, int], tuple[int, int]]
  words: list[int]
  patterns: automaton.Automaton
  cut: bool
  dummy: bool
  composed: bool


def tables(vocab: Vocab, size: int) -> Tables:
  """The tables of a vocabulary, for a model of `size` ids.

  Raises:
    UserError: a tokenizer that they cannot say.
  """
  bpe.check_size(vocab, size, "two-file export")
  ours = not isinstance(vocab, bpe.HuggingFaceVocab)
  full = bpe.as_huggingface(vocab)
  spec = full.spec
  model = json.loads(full.tokenizer.to_str())["model"]
  _check_model(model)
  dummy, spaces = _normalizer(spec.get("normalizer"))
  regexes, byte_level = _pretokenizers(spec.get("pre_tokenizer"))
  ids = model["vocab"]
  if byte_level and not spaces and not model.get("byte_fallback"):
    byte_ids, merges = _byte_level(ids, model, size)
  elif model.get("byte_fallback") and not byte_level and not regexes:
    byte_ids, merges = _characters(ids, model, size, spaces=spaces)
  else:
    raise _refused("a BPE that is neither on bytes nor falls back to them")
  hidden = full.special_ids
  texts = [b"" if i in hidden or i >= full.size else full.token_bytes(i)
           for i in range(size)]
  guarded = {full.id(s) for s in SPECIALS if s in full.tokenizer.get_vocab()
             } if ours else full.speller.guarded
  if dummy and any(t["normalized"] for t in spec.get("added_tokens") or ()):
    raise _refused("added tokens that are looked for after normalising")
  added = [_added(t, guarded) for t in spec.get("added_tokens") or ()]
  return Tables(
      texts=texts, added=sorted(added, key=lambda a: (-len(a.text), a.id)),
      byte_ids=byte_ids, merges=merges,
      words=_words(full, model) if model.get("ignore_merges") else [],
      patterns=pattern_lib.compile_all(regexes), cut=ours, dummy=dummy,
      composed='"NFC"' in json.dumps(spec.get("normalizer")))


def _refused(what: str) -> UserError:
  return UserError(f"the two-file export cannot say this tokenizer: {what};"
                   " export for Hugging Face instead")


def _check_model(model: Mapping[str, Any]) -> None:
  if model.get("type", "BPE") != "BPE":
    raise _refused(f"its model is {model['type']}, not BPE")
  for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
    if model.get(key):
      raise _refused(f"its model has {key}")


def _normalizer(normalizer: Mapping[str, Any] | None) -> tuple[bool, bool]:
  """(is a space put first?, are spaces written as `▁`?)."""
  if not normalizer:
    return False, False
  parts = (normalizer.get("normalizers") or [] if
           normalizer["type"] == "Sequence" else [normalizer])
  dummy = spaces = False
  for part in parts:
    if part["type"] == "Prepend" and part["prepend"] == _SPACE and not spaces:
      dummy = True
    elif (part["type"] == "Replace" and part["pattern"] == {"String": " "}
          and part["content"] == _SPACE):
      spaces = True
    elif part["type"] != "NFC":  # Texts are taken to be in that form.
      raise _refused(f"it normalises by {part['type']}")
  if dummy and not spaces:
    raise _refused("it puts a sign before each text")
  return dummy, spaces


def _pretokenizers(spec: Mapping[str, Any] | None) -> tuple[list[str], bool]:
  """Patterns, and whether bytes are then written in GPT-2's alphabet."""
  if not spec:
    return [], False
  parts = spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]
  patterns, byte_level = [], False
  for part in parts:
    kind = part["type"]
    if byte_level:
      raise _refused("it cuts texts after it has written them as bytes")
    if kind == "Digits" and part["individual_digits"]:
      patterns.append(pattern_lib.DIGIT)
    elif kind == "Split" and part["behavior"] == "Isolated" and (
        not part["invert"] and "Regex" in part["pattern"]):
      patterns.append(part["pattern"]["Regex"])
    elif kind == "ByteLevel" and not part["add_prefix_space"]:
      byte_level = True
      patterns += [_GPT2] if part.get("use_regex", True) else []
    else:
      raise _refused(f"it cuts texts by {kind} in a way not known here")
  return patterns, byte_level


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
  parts = [m.split(" ", 1) if isinstance(m, str) else m
           for m in model["merges"]]
  return [(left, right) for left, right in parts]


def _byte_level(ids, model, size: int):
  """Merges of tokens that are written in GPT-2's alphabet."""
  byte_ids = [size] * 256
  for char, byte in bpe.byte_alphabet().items():
    if char in ids:
      byte_ids[byte] = ids[char]
    elif model.get("unk_token"):
      if model.get("fuse_unk"):
        raise _refused("it fuses unknown bytes")
      byte_ids[byte] = ids[model["unk_token"]]
  merges: dict[tuple[int, int], tuple[int, int]] = {}
  for rank, (a, b) in enumerate(_pairs(model)):
    merges[ids[a], ids[b]] = (rank, ids[a + b])
  return byte_ids, merges


def _characters(ids, model, size: int, *, spaces: bool):
  """The same of tokens that are written in characters, from bytes on.

  The bytes of a character become its token by merges that come before all
  others; what is on the way there has an id from `size` on. UTF-8 is free of
  prefixes, so that no such merge goes over the end of a character.
  """
  merges: dict[tuple[int, int], tuple[int, int]] = {}
  try:
    fallback = [ids[f"<0x{b:02X}>"] for b in range(256)]
  except KeyError as e:
    raise _refused(f"it falls back to bytes and has no {e}") from e
  byte_ids = list(fallback)
  partial: dict[bytes, int] = {}
  for token, i in ids.items():
    raw = token.encode()
    if len(token) != 1:
      continue
    if len(raw) == 1:
      byte_ids[raw[0]] = i
      continue
    for end in range(2, len(raw) + 1):
      left = partial.get(raw[:end - 1], fallback[raw[0]])
      whole = i if end == len(raw) else partial.setdefault(
          raw[:end], size + len(partial))
      merges[left, fallback[raw[end - 1]]] = (0, whole)
  if spaces:
    byte_ids[0x20] = ids[_SPACE]
  for rank, (a, b) in enumerate(_pairs(model)):
    merges[ids[a], ids[b]] = (1 + rank, ids[a + b])
  return byte_ids, merges


def _added(token: Mapping[str, Any], guarded: Iterable[int]) -> Added:
  for key in ("single_word", "lstrip", "rstrip"):
    if token.get(key):
      raise _refused(f"the added token {token['content']!r} has {key}")
  return Added(text=token["content"].encode(), id=token["id"],
               number=int(token["normalized"]), special=token["id"] in guarded)


def _words(vocab: bpe.HuggingFaceVocab, model: Mapping[str, Any]) -> list[int]:
  """The ids whose texts merges alone would write otherwise."""
  import tokenizers  # pylint: disable=g-import-not-at-top

  spec = json.loads(vocab.tokenizer.to_str())
  spec.update(added_tokens=[], normalizer=None, pre_tokenizer=None)
  spec["model"]["ignore_merges"] = False
  plain = tokenizers.Tokenizer.from_str(json.dumps(spec))
  names = list(model["vocab"])
  found = plain.encode_batch(names, add_special_tokens=False)
  return sorted(model["vocab"][name] for name, e in zip(names, found)
                if e.ids != [model["vocab"][name]]
                and len(name) < _LONGEST)
