"""Vocabularies: SentencePiece (BPE with byte fallback) and plain bytes.

Both give back every text exactly: no normalisation, no dummy prefix, bytes for
what no piece covers. The chat specials and the newline are pieces of their own.
Those of other models are in `bpe.py`; `load` reads every kind.
Neither TensorFlow nor seqio is imported here.
"""

from collections.abc import Iterable, Sequence
import contextlib
import functools
import hashlib
import io
import json
import os
import re

from lm import paths
from lm.types import UserError

SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
END = "<|end|>"
_SPACE = "\u2581"  # SentencePiece writes a space as this character.
_CHUNK = 1 << 16  # Longer texts are encoded in parts, in characters.
_SPECIAL_RE = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


class Vocab:
  """Text to ids and back; `<|end|>` is the end of a text and of a turn.

  Attributes:
    size: number of ids.
    eos_id: the id of `<|end|>`, or of what another model has for it.
    bos_id: the id of a beginning of text; None: there is none, as in our own.
    prefix: ids that a model expects at the start of every text (Llama's
      beginning of text); `encode` does not add them.
    eos_ids: every id that ends a turn or a text; the first is `eos_id`.
    special_ids: ids of control tokens, which stand for no text of a document.
    chat_template: Jinja, as in Hugging Face's tokenizer_config.json; None: the
      template of `chat.py`.
  """

  size: int
  eos_id: int
  bos_id: int | None = None
  prefix: tuple[int, ...] = ()
  special_ids: frozenset[int] = frozenset()
  chat_template: str | None = None

  @functools.cached_property
  def eos_ids(self) -> tuple[int, ...]:
    return (self.eos_id,)

  def encode(self, text: str, *, specials: bool = True) -> list[int]:
    """The ids of `text`.

    Args:
      text: any text; lone surrogates become `?`.
      specials: whether `<|user|>` and its like in the text mean the special
        ids. False spells them out, so that text from outside cannot forge a
        turn; `decode` gives the same text either way.
    """
    text = well_formed(text)
    if specials or "<|" not in text:
      return self._encode(text)
    ids = []
    for i, chunk in enumerate(_SPECIAL_RE.split(text)):
      if i % 2:
        ids += self._encode(chunk[:2]) + self._encode(chunk[2:])
      elif chunk:
        ids += self._encode(chunk)
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`; incomplete UTF-8 becomes U+FFFD."""
    raise NotImplementedError

  def id(self, piece: str) -> int:
    """The id of one piece (`▁` for its leading space); KeyError if none."""
    raise NotImplementedError

  def piece(self, index: int) -> str:
    """The piece with this id, for display."""
    raise NotImplementedError

  def token_bytes(self, index: int) -> bytes:
    """The bytes that one id stands for."""
    raise NotImplementedError

  def serialize(self) -> bytes:
    """The bytes that `load` reads."""
    raise NotImplementedError

  def _encode(self, text: str) -> list[int]:
    raise NotImplementedError

  @functools.cached_property
  def hash(self) -> str:
    """Sixteen hex digits that change with the vocabulary."""
    return hashlib.sha256(self.serialize()).hexdigest()[:16]

  def save(self, path: str | os.PathLike) -> None:
    """Writes the vocabulary to one file, atomically."""
    path = paths.path(path)
    paths.make(path.parent)
    paths.write_bytes(path, self.serialize())


class SentencePieceVocab(Vocab):
  """A SentencePiece model whose text round-trips exactly.

  Args:
    model: the bytes of a `.model` file.

  Raises:
    UserError: not a SentencePiece model, or one without `<|end|>`.
  """

  def __init__(self, model: bytes):
    import sentencepiece  # pylint: disable=g-import-not-at-top

    self._model = bytes(model)
    self._sp = sentencepiece.SentencePieceProcessor()
    try:
      self._sp.LoadFromSerializedProto(self._model)
    except RuntimeError as e:
      raise UserError("not a SentencePiece model: train one with"
                      " `lm vocab train`") from e
    self.size = self._sp.get_piece_size()
    try:
      self.eos_id = self.id(END)
    except KeyError as e:
      raise UserError(f"the SentencePiece model has no piece {END}: train one"
                      " with `lm vocab train`") from e
    self.special_ids = _found(self, SPECIALS)
    self._split = re.compile(f"({re.escape(END)}|{_SPACE})")
    self._spelled_space = [self._sp.piece_to_id(f"<0x{b:02X}>")
                           for b in _SPACE.encode()]

  def _encode(self, text: str) -> list[int]:
    ids = []
    for chunk in self._split.split(text):
      if chunk == END:
        # A control piece, so that seqio and others know it as the end of a
        # text; SentencePiece itself does not find those in texts.
        ids.append(self.eos_id)
      elif chunk == _SPACE:
        ids += self._spelled_space  # It would come back as a space.
      else:
        while len(chunk) > _CHUNK:  # No piece goes on after a newline.
          end = chunk.rfind("\n", 0, _CHUNK) + 1 or len(chunk)
          ids += self._sp.encode(chunk[:end])
          chunk = chunk[end:]
        ids += self._sp.encode(chunk) if chunk else []
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    texts, run = [], []
    for i in ids:
      if i == self.eos_id:
        texts.append(self._sp.decode(run))
        run = []
      else:
        run.append(int(i))
    return END.join([*texts, self._sp.decode(run)])

  def id(self, piece: str) -> int:
    index = self._sp.piece_to_id(piece)
    if index == self._sp.unk_id():
      raise KeyError(piece)
    return index

  def piece(self, index: int) -> str:
    return self._sp.id_to_piece(int(index))

  def token_bytes(self, index: int) -> bytes:
    piece = self.piece(index)
    if self._sp.is_byte(int(index)):
      return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()

  def serialize(self) -> bytes:
    return self._model

  def __reduce__(self):
    return SentencePieceVocab, (self._model,)


class ByteVocab(Vocab):
  """The 256 bytes, then the chat specials, then the caller's symbols.

  Id 0 is a real token (the byte 0), as everywhere here: padding is never an id.
  """

  def __init__(self, symbols: Sequence[str] = ()):
    taken = {"\n", *SPECIALS}
    self.symbols = tuple(dict.fromkeys(s for s in symbols if s not in taken))
    self._ids = {s: 256 + i for i, s in enumerate(SPECIALS + self.symbols)}
    self._pieces = [bytes([i]) for i in range(256)] + [
        s.replace(_SPACE, " ").encode() for s in self._ids]
    spoken = {s.replace(_SPACE, " "): i for s, i in self._ids.items()}
    self._by_text = spoken
    longest_first = sorted(spoken, key=len, reverse=True)
    self._re = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    self.size = len(self._pieces)
    self.eos_id = self._ids[END]
    self.special_ids = _found(self, SPECIALS)

  def _encode(self, text: str) -> list[int]:
    ids = []
    for i, chunk in enumerate(self._re.split(text)):
      ids += [self._by_text[chunk]] if i % 2 else chunk.encode()
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    return b"".join(self._pieces[i] for i in ids).decode("utf-8", "replace")

  def id(self, piece: str) -> int:
    if piece in self._ids:
      return self._ids[piece]
    raw = piece.replace(_SPACE, " ").encode()
    if len(raw) != 1:
      raise KeyError(piece)
    return raw[0]

  def piece(self, index: int) -> str:
    return self._pieces[index].decode("utf-8", "backslashreplace")

  def token_bytes(self, index: int) -> bytes:
    return self._pieces[index]

  def serialize(self) -> bytes:
    return json.dumps({"kind": "bytes", "symbols": self.symbols}).encode()

  def __reduce__(self):
    return ByteVocab, (self.symbols,)


def load(path: str | os.PathLike) -> Vocab:
  """The vocabulary of a file that `save` or `train` wrote; "bytes" is bytes.

  Raises:
    UserError: no such file, or not a vocabulary.
  """
  if str(path) == "bytes":
    return ByteVocab()
  path = paths.path(path)
  try:
    raw = paths.read_bytes(path)
  except OSError as e:
    raise UserError(f"no vocabulary at {path}: train one with"
                    " `lm vocab train`") from e
  try:
    if raw[:1] == b"{":
      return from_json(raw)
    return SentencePieceVocab(raw)
  except UserError as e:
    raise UserError(f"{path}: {e}") from e


def from_json(raw: bytes) -> Vocab:
  """What `serialize` wrote of a vocabulary that is JSON.

  Raises:
    UserError: it is not one.
  """
  try:
    saved = json.loads(raw)
    if saved.get("kind") != "tokenizers":
      return ByteVocab(saved["symbols"])
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError("not a vocabulary of this project") from e
  from lm.data import bpe  # It builds on this module.
  return bpe.HuggingFaceVocab(saved.get("tokenizer"), saved.get("config"))


def _found(vocab: Vocab, pieces: Iterable[str]) -> frozenset[int]:
  ids = set()
  for piece in pieces:
    with contextlib.suppress(KeyError):
      ids.add(vocab.id(piece))
  return frozenset(ids)


def train(
    texts: Iterable[str], size: int, *, path: str | os.PathLike | None = None,
    symbols: Sequence[str] = (), max_bytes: int = 6_000_000,
) -> SentencePieceVocab:
  """Trains a BPE vocabulary on lines of `texts`, in seconds.

  Args:
    texts: documents.
    size: number of pieces, with the 256 bytes, specials and symbols.
    path: where to save it, if given.
    symbols: strings that are always one piece (`▁` for a leading space); they
      win over every learnt piece, so digits may get fixed pieces this way.
    max_bytes: an even sample of the lines of this size is looked at.

  Returns:
    The vocabulary: identity normalisation, runs of spaces as pieces, learnt
    pieces without digits.

  Raises:
    UserError: no text, or a size that the text cannot fill.
  """
  import sentencepiece  # pylint: disable=g-import-not-at-top

  lines = _sample(texts, max_bytes)
  if not lines:
    raise UserError("no text to train a vocabulary on: give a corpus that is"
                    " not empty")
  fixed = [s for s in dict.fromkeys((*SPECIALS, "\n", *symbols)) if s != END]
  out = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=size,
        model_type="bpe", byte_fallback=True, num_threads=os.cpu_count() or 1,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, allow_whitespace_only_pieces=True,
        split_digits=True, user_defined_symbols=fixed,
        character_coverage=0.9995, max_sentence_length=16_384,
        unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, eos_piece=END, minloglevel=2)
  except (RuntimeError, ValueError) as e:
    reason = str(e).split("] ")[-1].strip() or "training failed"
    raise UserError(f"cannot train a vocabulary of {size} pieces:"
                    f" {reason} ({256 + len(fixed) + 2} are fixed)") from e
  vocab = SentencePieceVocab(out.getvalue())
  if path is not None:
    vocab.save(path)
  return vocab


def _sample(texts: Iterable[str], max_bytes: int) -> list[str]:
  """An even sample of lines: every 1st, 2nd, 4th, ... as the text grows."""
  kept, total, stride, seen = [], 0, 1, 0
  for text in texts:
    for line in well_formed(text).split("\n"):
      if not line.strip() or "\0" in line:
        continue
      seen += 1
      if seen % stride:
        continue
      kept.append(line)
      total += len(line.encode())
      if total > max_bytes:
        kept = kept[1::2]
        total = sum(len(x.encode()) for x in kept)
        stride *= 2
  return kept


def well_formed(text: str) -> str:
  """The text with `?` for lone surrogates, which no bytes stand for."""
  try:
    text.encode("utf-8")
    return text
  except UnicodeEncodeError:
    return text.encode("utf-8", "replace").decode("utf-8")
