"""Tokenizers put together from parts: SentencePiece models and our own.

Every function gives (spec, config) as `HuggingFaceVocab` takes them.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import struct
from typing import Any

from lm.data.vocab import ByteVocab, SPECIALS, SentencePieceVocab, Vocab
from lm.types import UserError

# Renders exactly what `lm.data.chat.prompt` and `encode` make of a dialogue.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")

# SentencePiece's numbers for kinds of pieces, which GGUF has taken over.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_LONGEST = 1000  # Characters of one piece; ways to split it grow with it.


@dataclasses.dataclass(frozen=True)
class SentencePieces:
  """What a SentencePiece model says, as far as we go by it."""

  pieces: list[tuple[str, float, int]]  # Text, score, kind.
  is_bpe: bool
  bos_id: int
  eos_id: int
  unk_id: int
  dummy_prefix: bool
  plain: bool  # Neither normalises nor takes out spaces.


def added_token(index: int, content: str, *, special: bool) -> dict[str, Any]:
  """An entry of tokenizer.json's added_tokens."""
  return {"id": index, "content": content, "single_word": False,
          "lstrip": False, "rstrip": False, "normalized": False,
          "special": special}


def bpe_spec(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]],
    added: Iterable[Mapping[str, Any]], *, normalizer: Any = None,
    pre_tokenizer: Any = None, decoder: Any, byte_fallback: bool = False,
    ignore_merges: bool = False, unk_token: str | None = None,
) -> dict[str, Any]:
  """The object of a tokenizer.json of BPE."""
  return {
      "version": "1.0", "truncation": None, "padding": None,
      "added_tokens": sorted(added, key=lambda t: t["id"]),
      "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
      "post_processor": None, "decoder": decoder,
      "model": {
          "type": "BPE", "dropout": None, "unk_token": unk_token,
          "continuing_subword_prefix": None, "end_of_word_suffix": None,
          "fuse_unk": byte_fallback and unk_token is not None,
          "byte_fallback": byte_fallback, "ignore_merges": ignore_merges,
          "vocab": dict(ids), "merges": [list(m) for m in merges]}}


def sequence(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
  """A Sequence of normalizers, pretokenizers or decoders."""
  return {"type": "Sequence", name: parts}


def score_merges(
    pieces: Sequence[tuple[str, float, int]]) -> list[tuple[str, str]]:
  """The merges that amount to SentencePiece's scores.

  SentencePiece joins the neighbours whose whole has the best score; so every
  way to put a piece together out of two others is a merge of its rank.

  Args:
    pieces: text, score and kind of each piece.

  Raises:
    UserError: a piece that is absurdly long.
  """
  normal = {t for t, _, kind in pieces if kind == NORMAL}
  ranked = sorted((-score, i) for i, (_, score, kind) in enumerate(pieces)
                  if kind == NORMAL)
  merges = []
  for _, i in ranked:
    piece = pieces[i][0]
    if len(piece) > _LONGEST:
      raise UserError(f"piece {i} of the tokenizer has {len(piece)} characters:"
                      f" more than {_LONGEST} are a fault")
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in normal and right in normal:
        merges.append((left, right))
  return merges


def spaced_parts(
    pieces: Sequence[tuple[str, float, int]], *, dummy_prefix: bool,
) -> dict[str, Any]:
  """The tokenizer.json of SentencePiece's BPE with its `▁` for spaces.

  Args:
    pieces: text, score and kind of each piece.
    dummy_prefix: whether a space is put before every text.

  Raises:
    UserError: two pieces are the same, or no piece for unknown or for bytes.
  """
  ids = unique([t for t, _, _ in pieces])
  fallback = all(f"<0x{b:02X}>" in ids for b in range(256))
  unknown = [t for t, _, kind in pieces if kind == UNKNOWN]
  if not fallback and not unknown:
    raise UserError("the tokenizer has neither pieces for the 256 bytes nor"
                    " one for what is unknown")
  replace = lambda a, b: {
      "type": "Replace", "pattern": {"String": a}, "content": b}
  prepend = [{"type": "Prepend", "prepend": _SPACE}] if dummy_prefix else []
  strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
  return bpe_spec(
      ids, score_merges(pieces), [
          added_token(i, t if kind != USER else t.replace(_SPACE, " "),
                      special=kind != USER)
          for i, (t, _, kind) in enumerate(pieces)
          if kind in (UNKNOWN, CONTROL, USER)],
      normalizer=sequence("normalizers", [*prepend, replace(" ", _SPACE)]),
      decoder=sequence("decoders", [
          replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
          *(strip if dummy_prefix else [])]),
      byte_fallback=fallback, unk_token=unknown[0] if unknown else None)


def unique(tokens: Sequence[str]) -> dict[str, int]:
  """Token -> id.

  Raises:
    UserError: a token comes twice.
  """
  ids: dict[str, int] = {}
  for i, token in enumerate(tokens):
    if ids.setdefault(token, i) != i:
      raise UserError(f"the tokenizer has {token!r} twice, as {ids[token]} and"
                      f" as {i}")
  return ids


def sentencepiece_parts(model: bytes) -> tuple[dict, dict]:
  """The tokenizer of a SentencePiece model as Llama 2 and Mistral use it.

  Raises:
    UserError: not a model of BPE, or one with rules that are not kept here.
  """
  found = parse_sentencepiece(model)
  if not found.is_bpe:
    raise UserError("a SentencePiece model that is not of BPE: bring the"
                    " tokenizer.json of the model")
  if not found.plain:
    raise UserError("a SentencePiece model that normalises its text: bring the"
                    " tokenizer.json of the model")
  if found.dummy_prefix and any(k == USER for _, _, k in found.pieces):
    # SentencePiece finds these after it has put the space before the text.
    raise UserError("a SentencePiece model with symbols of its user and a"
                    " space before each text: bring its tokenizer.json")
  spec = spaced_parts(found.pieces, dummy_prefix=found.dummy_prefix)
  known = lambda i: i if 0 <= i < len(found.pieces) else None
  return spec, {
      "bos_id": known(found.bos_id), "unk_id": known(found.unk_id),
      "eos_ids": [] if known(found.eos_id) is None else [found.eos_id]}


def house_parts(vocab: Vocab) -> tuple[dict, dict]:
  """The tokenizer of one of our own vocabularies, id for id.

  Spaces stay spaces here: `▁` in a text is no space, and is spelt in bytes.

  Raises:
    UserError: a vocabulary of another kind, or with a piece twice.
  """
  if isinstance(vocab, ByteVocab):
    ids = {f"<0x{b:02X}>": b for b in range(256)}
    symbols = [(256 + i, vocab.token_bytes(256 + i).decode())
               for i in range(vocab.size - 256)]
    merges: list[tuple[str, str]] = []
  elif isinstance(vocab, SentencePieceVocab):
    pieces = [(t.replace(_SPACE, " "), score, kind) for t, score, kind
              in parse_sentencepiece(vocab.serialize()).pieces]
    ids = unique([t for t, _, _ in pieces])
    symbols = [(i, t) for i, (t, _, kind) in enumerate(pieces)
               if kind == USER or t in SPECIALS]
    merges = score_merges(pieces)
  else:
    raise UserError(f"a {type(vocab).__name__} cannot be written as a"
                    " tokenizer.json")
  unique([t for _, t in symbols])
  spec = bpe_spec(
      ids, merges,
      [added_token(i, t, special=t in SPECIALS) for i, t in symbols],
      decoder=sequence("decoders", [{"type": "ByteFallback"},
                                    {"type": "Fuse"}]), byte_fallback=True)
  return spec, {"eos_ids": [vocab.eos_id], "pad_id": vocab.eos_id,
                "chat_template": TEMPLATE}


def parse_sentencepiece(model: bytes) -> SentencePieces:
  """Reads a SentencePiece model without its protocol buffer classes.

  The fields are those of sentencepiece_model.proto (ModelProto: 1 pieces, 2
  trainer_spec, 3 normalizer_spec).

  Raises:
    UserError: not such a model.
  """
  try:
    top = list(_fields(model))
    trainer = dict(_fields(b"".join(v for n, v in top if n == 2)))
    rules = dict(_fields(b"".join(v for n, v in top if n == 3)))
    pieces = []
    for raw in (dict(_fields(v)) for n, v in top if n == 1):
      [score] = struct.unpack("<f", raw.get(2, bytes(4)))
      pieces.append((raw.get(1, b"").decode(), score, int(raw.get(3, NORMAL))))
    signed = lambda v: v - (1 << 64) if v >> 63 else v
    found = SentencePieces(
        pieces=pieces, is_bpe=trainer.get(3, 1) == 2,
        unk_id=signed(trainer.get(40, 0)), bos_id=signed(trainer.get(41, 1)),
        eos_id=signed(trainer.get(42, 2)), dummy_prefix=bool(rules.get(3, 1)),
        plain=not rules.get(2) and not rules.get(4, 1)
        and bool(rules.get(5, 1)) and not trainer.get(24, 0))
  except (ValueError, IndexError, struct.error, TypeError,
          AttributeError) as e:
    raise UserError("not a SentencePiece model") from e
  if not pieces:
    raise UserError("not a SentencePiece model")
  return found


def _fields(raw: bytes) -> Iterable[tuple[int, Any]]:
  """(number, value) of each field of a protocol buffer message."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = raw[at]
      at += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value
      if shift > 63:
        raise ValueError("not a number")

  def take(size: int) -> bytes:
    nonlocal at
    if size > len(raw) - at:
      raise ValueError("cut off")
    at += size
    return raw[at - size: at]

  while at < len(raw):
    key = varint()
    kind = key & 7
    if kind == 0:
      yield key >> 3, varint()
    elif kind == 1:
      yield key >> 3, take(8)
    elif kind == 2:
      yield key >> 3, take(varint())
    elif kind == 5:
      yield key >> 3, take(4)
    else:
      raise ValueError("not a protocol buffer")
