"""Tokenizers of other models: what Hugging Face folders and GGUF files hold.

One class over the `tokenizers` library reads them all; `bpe_folder.py` reads
and writes folders, `bpe_build.py` builds a tokenizer out of the parts that a
GGUF file, a SentencePiece model or a vocabulary of our own consists of.
"""

from collections.abc import Iterable, Mapping
import functools
import json
import os
import re
from typing import Any

from lm.data import bpe_spell
from lm.data import vocab as vocab_lib
from lm.data.vocab import Vocab
from lm.types import UserError

_MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_TEXT_DECODERS = {"Replace", "Fuse", "Strip", "ByteFallback", "Metaspace"}
_BYTE_RE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class HuggingFaceVocab(Vocab):
  """A tokenizer as in Hugging Face's tokenizer.json, of any model.

  `decode` gives back every text exactly if the tokenizer is on bytes and does
  not normalise (Qwen's does: NFC). Special tokens are their own text in
  `decode` and `token_bytes`; ids that no token has stand for nothing.

  Args:
    spec: the object in a tokenizer.json.
    config: {"eos_ids": [ids], "bos_id": id or None, "prefix": [ids],
      "chat_template": Jinja or None, "pad_id", "unk_id": id or None}; all but
      the first may be missing.

  Raises:
    UserError: not a tokenizer, or ids that it does not have.
  """

  def __init__(self, spec: Mapping[str, Any], config: Mapping[str, Any]):
    import tokenizers  # pylint: disable=g-import-not-at-top

    _check_spec(spec)
    # The text of it: as objects, 100,000s of merges would take 100s of MB.
    self._json = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    try:
      # What it puts before and after a text is `prefix`; without, it tells
      # truly which characters a token covers.
      self.tokenizer = tokenizers.Tokenizer.from_str(
          json.dumps({**spec, "post_processor": None}))
      self.tokenizer.no_truncation()
      self.tokenizer.no_padding()
    except BaseException as e:  # A panic in Rust is not an Exception.
      if isinstance(e, (KeyboardInterrupt, SystemExit, MemoryError)):
        raise
      raise UserError(f"not a working tokenizer: {_line(e)}") from e
    self._spec = {k: v for k, v in spec.items() if k != "model"}
    self._ids = self.tokenizer.get_vocab(True)
    if not self._ids:
      raise UserError("the tokenizer has no tokens")
    self.size = max(self._ids.values()) + 1
    if self.size > 2 * len(self._ids) + 1000:
      raise UserError(f"the tokenizer's ids go up to {self.size - 1} for"
                      f" {len(self._ids)} tokens: they are out of range")
    for token in spec.get("added_tokens") or ():
      if self._ids.get(token["content"]) != token["id"]:
        raise UserError(
            f"the added token {token['content']!r} says id {token['id']} and"
            f" would get {self._ids.get(token['content'])}: ids must follow"
            " those of the model without a gap")
    self.config = _checked_config(config, self.size)
    self._table = _Table(spec, self._ids, self.size, self.tokenizer)
    self.eos_ids = tuple(self.config["eos_ids"])
    self.eos_id = self.eos_ids[0]
    self.bos_id = self.config["bos_id"]
    self.prefix = tuple(self.config["prefix"])
    self.chat_template = self.config["chat_template"]
    self.special_ids = frozenset(
        t["id"] for t in spec.get("added_tokens") or () if t["special"]
    ) | frozenset(self.eos_ids) | frozenset(self.prefix) | frozenset(
        () if self.bos_id is None else (self.bos_id,))
    self.speller = bpe_spell.Speller(self)

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> "HuggingFaceVocab":
    """The tokenizer of a folder in Hugging Face's layout.

    Raises:
      UserError: none there, or one that is not whole; the line names the file.
    """
    from lm.data import bpe_folder
    return bpe_folder.read(folder, cls)

  @classmethod
  def from_gguf_fields(cls, fields: Mapping[str, Any]) -> "HuggingFaceVocab":
    """The tokenizer of a GGUF file's fields (`tokenizer.ggml.model`, ...).

    Raises:
      UserError: a kind of tokenizer that is not known here, or broken fields.
    """
    from lm.data import bpe_gguf
    return cls(*bpe_gguf.parts(fields))

  def write_folder(self, folder: str | os.PathLike) -> None:
    """Writes tokenizer.json and its configs, which transformers opens."""
    from lm.data import bpe_folder
    bpe_folder.write(folder, self)

  @property
  def spec(self) -> dict[str, Any]:
    """The object of tokenizer.json."""
    return json.loads(self._json)

  def encode(self, text: str, *, specials: bool = True) -> list[int]:
    text = vocab_lib.well_formed(text)
    if specials or not self.speller.concerns(text):
      return self.tokenizer.encode(text, add_special_tokens=False).ids
    return self.speller.encode([(text, False)])[0]

  def encode_marked(
      self, text: str, mark: str) -> tuple[list[int], bpe_spell.Spans]:
    """Ids of a text in which some special tokens are only spelt.

    Args:
      text: any text.
      mark: a character; where it stands inside the text of a special token,
        that is spelt out. It is taken out first.

    Returns:
      The ids, and for each the characters it covers in the text without marks.
      Without marks they are those of `encode(text)`.
    """
    text = vocab_lib.well_formed(text)
    if mark not in text and not self.speller.hidden:
      encoded = self.tokenizer.encode(text, add_special_tokens=False)
      return encoded.ids, encoded.offsets
    return self.speller.encode([
        (part.replace(mark, ""), i % 2 == 1)
        for i, part in enumerate(self.speller.guard.split(text))])

  def decode(self, ids: Iterable[int]) -> str:
    ids = [i for i in map(int, ids) if 0 <= i < self.size]
    if self._table.style is None:
      return self.tokenizer.decode(ids, skip_special_tokens=False)
    raw = b"".join(map(self._table.texts.__getitem__, ids))
    if self._table.style[1] and raw[:1] == b" ":
      raw = raw[1:]  # The space that encoding put before the first word.
    return raw.decode("utf-8", "replace")

  def id(self, piece: str) -> int:
    """The id of a token, by its name in the tokenizer or by its text."""
    if piece in self._ids:
      return self._ids[piece]
    return self._table.by_text[piece.replace(_SPACE, " ").encode()]

  def piece(self, index: int) -> str:
    """The name of a token in the tokenizer; empty for ids without a token."""
    if not 0 <= index < self.size:
      raise IndexError(f"id {index} of a vocabulary of {self.size}")
    return self.tokenizer.id_to_token(int(index)) or ""

  def token_bytes(self, index: int) -> bytes:
    if not 0 <= index < self.size:
      raise IndexError(f"id {index} of a vocabulary of {self.size}")
    return self._table.texts[index]

  def serialize(self) -> bytes:
    config = json.dumps(self.config, ensure_ascii=False, sort_keys=True)
    return (f'{{"kind":"tokenizers","config":{config},'
            f'"tokenizer":{self._json}}}').encode()

  def __reduce__(self):
    return vocab_lib.from_json, (self.serialize(),)


def check_size(vocab: Vocab, size: int, where: str | os.PathLike) -> None:
  """Raises UserError if a model of `size` embedding rows lacks some ids."""
  if vocab.size > size:
    raise UserError(
        f"{where}: a tokenizer that does not match: it has {vocab.size} ids,"
        f" and the model has {size} rows of embeddings; take the tokenizer"
        " that the model was trained with")


def as_huggingface(vocab: Vocab) -> HuggingFaceVocab:
  """The same vocabulary, with the same ids, over `tokenizers`.

  Raises:
    UserError: one that cannot be written so.
  """
  if isinstance(vocab, HuggingFaceVocab):
    return vocab
  from lm.data import bpe_build
  return HuggingFaceVocab(*bpe_build.house_parts(vocab))


def to_huggingface(vocab: Vocab, folder: str | os.PathLike) -> None:
  """Writes any vocabulary as a folder which transformers opens."""
  as_huggingface(vocab).write_folder(folder)


def _check_spec(spec: Any) -> None:
  """Raises UserError for what `tokenizers` would explain badly."""
  model = spec.get("model") if isinstance(spec, Mapping) else None
  if not isinstance(model, Mapping):
    raise UserError("not a tokenizer: it has no 'model'")
  kind = model.get("type", "BPE")
  if kind not in _MODELS:
    raise UserError(f"a tokenizer of the unknown type {kind!r}; known are"
                    f" {', '.join(_MODELS)}")
  added = spec.get("added_tokens") or ()
  if not isinstance(added, (list, tuple)) or not all(
      isinstance(t, Mapping) and isinstance(t.get("content"), str)
      and type(t.get("id")) is int and isinstance(t.get("special"), bool)
      and isinstance(t.get("normalized"), bool) for t in added):
    raise UserError("the tokenizer's 'added_tokens' are not a list of tokens"
                    " with content, id, special and normalized")


def _checked_config(config: Any, size: int) -> dict[str, Any]:
  if not isinstance(config, Mapping):
    raise UserError("a tokenizer without a 'config'")
  out = {"bos_id": None, "pad_id": None, "unk_id": None, "prefix": [],
         "chat_template": None, **config}
  one = lambda k: [] if out[k] is None else [out[k]]
  eos, prefix = out.get("eos_ids"), out["prefix"]
  if not isinstance(eos, (list, tuple)) or not eos:
    raise UserError("the tokenizer names no token that ends a text: give it an"
                    " eos_token")
  if not isinstance(prefix, (list, tuple)):
    raise UserError("a tokenizer's 'prefix' must be a list of ids")
  for name, ids in (("eos", eos), ("prefix", prefix), ("bos", one("bos_id")),
                    ("pad", one("pad_id")), ("unk", one("unk_id"))):
    for i in ids:
      if type(i) is not int or not 0 <= i < size:
        raise UserError(f"the {name} token's id {i!r} is not one of the"
                        f" tokenizer's {size}")
  template = out["chat_template"]
  if template is not None and not isinstance(template, str):
    raise UserError("a chat template must be a text")
  if template is not None:
    out["chat_template"] = vocab_lib.well_formed(template)
  return {**out, "eos_ids": list(dict.fromkeys(eos)), "prefix": list(prefix)}


def _decoders(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  decoder = spec.get("decoder") or {}
  return list(decoder.get("decoders") or ()) or ([decoder] if decoder else [])


def _style(spec: Mapping[str, Any]) -> tuple[bool, bool] | None:
  """(byte alphabet?, is a first space dropped?), or None: leave it to them."""
  decoders = _decoders(spec)
  kinds = {d.get("type") for d in decoders}
  if "ByteLevel" in kinds:
    return True, False
  if not kinds or not kinds <= _TEXT_DECODERS:
    return None
  dropped = any(
      d["type"] == "Strip" and d.get("content") == " " and d.get("start")
      or d["type"] == "Metaspace"
      and d.get("prepend_scheme", "always") != "never"
      and d.get("add_prefix_space", True) for d in decoders)
  return False, dropped


class _Table:
  """The bytes that each id stands for, made when first asked for.

  Attributes:
    style: (byte alphabet?, is a first space dropped?); None: not known.
  """

  def __init__(self, spec, ids: Mapping[str, int], size: int, tokenizer: Any):
    self.style = _style(spec)
    self._decoders, self._tokenizer = _decoders(spec), tokenizer
    self._added = {t["id"] for t in spec.get("added_tokens") or ()}
    self._ids, self._size = ids, size

  @functools.cached_property
  def texts(self) -> list[bytes]:
    """Of each id; nothing for ids without a token."""
    table = [b""] * self._size
    alphabet = byte_alphabet()
    kinds = {d.get("type") for d in self._decoders}
    spaces = [(_SPACE, " ")] if "Metaspace" in kinds else []
    spaces += [(d["pattern"]["String"], d["content"]) for d in self._decoders
               if d.get("type") == "Replace" and "String" in d["pattern"]]
    for token, i in self._ids.items():
      if i in self._added:
        table[i] = token.encode()
      elif self.style is None:
        table[i] = self._tokenizer.decode(
            [i], skip_special_tokens=False).encode()
      elif self.style[0]:
        known = all(c in alphabet for c in token)
        table[i] = (bytes(alphabet[c] for c in token) if known
                    else token.encode())
      elif "ByteFallback" in kinds and (byte := _BYTE_RE.fullmatch(token)):
        table[i] = bytes([int(byte[1], 16)])
      else:
        for old, new in spaces:
          token = token.replace(old, new)
        table[i] = token.encode()
    return table

  @functools.cached_property
  def by_text(self) -> dict[bytes, int]:
    """The first id of each text."""
    return {raw: i for i, raw in reversed(list(enumerate(self.texts))) if raw}


@functools.cache
def byte_alphabet() -> dict[str, int]:
  """The character by which GPT-2's alphabet writes each byte -> that byte.

  Printable bytes stand for themselves, the others are written U+0100 and on.
  """
  shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [b for b in range(256) if b not in set(shown)]
  return {**{chr(b): b for b in shown},
          **{chr(256 + n): b for n, b in enumerate(hidden)}}


def _line(error: BaseException) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__
