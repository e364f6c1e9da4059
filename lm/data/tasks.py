"""Tasks: where rows come from, and how a row becomes tokens.

A `Task` is plain Python and needs no TensorFlow; `lm.data.prepare` writes it.
`lm.data.seqio_tasks` registers tasks with seqio, and makes a `Task` of whatever
is registered there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import numbers
import os
from typing import Any

from lm.data import chat, corpus
from lm.data.vocab import Vocab
from lm.types import UserError

Row = Mapping[str, Any]
Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """Rows in shards, and what makes an example of a row.

  All parts pickle, so that other processes can work on shards.

  Attributes:
    name: for manifests and messages.
    kind: "tokens" (documents for a flat token file) or "examples".
    vocab: the vocabulary.
    shards: each gives an iterable of (where, row) from its beginning; `where`
      names a row in messages, such as "a.jsonl:7".
    convert: convert(vocab, row) -> {"tokens" [n] and, optionally, "weights",
      "values", "value_weights" [n], "text_bytes"}; ValueError if it cannot.
    source: for people, kept in the manifest.
    key: changes whenever the data would.
  """

  name: str
  kind: str
  vocab: Vocab
  shards: Sequence[Callable[[], Iterable[tuple[str, Row]]]]
  convert: Callable[[Vocab, Row], Example]
  source: Mapping[str, Any]
  key: str

  def examples(self, shard: int | None = None) -> Iterator[Example]:
    """The examples of one shard, or of all in order.

    Raises:
      UserError: a row that cannot be converted, by its file and line.
    """
    shards = self.shards if shard is None else [self.shards[shard]]
    for rows in shards:
      for where, row in rows():
        try:
          yield self.convert(self.vocab, row)
        except ValueError as e:
          if isinstance(e, UserError):
            raise
          raise UserError(f"{where}: {e}: correct or delete this row") from e


def text(
    name: str, vocab: Vocab, *, documents: corpus.Corpus,
    split: str = "train", holdout: float = 0.0,
) -> Task:
  """Documents as a stream of tokens, each ended by `<|end|>`.

  Args:
    name: of the task.
    vocab: the vocabulary.
    documents: the corpus.
    split: "train" or "validation".
    holdout: share of the documents that is "validation", by their names.
  """
  part = functools.partial(_documents, documents, split, holdout)
  return Task(
      name=name, kind="tokens", vocab=vocab, convert=text_example,
      shards=[functools.partial(part, i) for i in range(documents.num_shards)],
      source={**documents.source, "split": split, "holdout": holdout},
      key=json.dumps([documents.key, split, holdout]))


def _documents(documents: corpus.Corpus, split: str, holdout: float,
               shard: int) -> Iterator[tuple[str, Row]]:
  for where, content in documents.read(shard):
    if corpus.split_of(where, holdout) == split:
      yield where, {"text": content}


def text_example(vocab: Vocab, row: Row) -> Example:
  """{"text"} -> its tokens and `<|end|>`; specials in it are spelled out."""
  content = row.get("text")
  if not isinstance(content, str):
    raise ValueError("'text' must be a text")
  ids = vocab.encode(content, specials=False)
  return {"tokens": [*vocab.prefix, *ids, vocab.eos_id],
          "text_bytes": len(content.encode("utf-8", "replace"))}


def chat_example(vocab: Vocab, row: Row) -> Example:
  """{"messages"} -> tokens with weights; {"prompt", "lines"} -> with values.

  "imitate" (default 1) multiplies the weights of the row.
  """
  if "lines" in row:
    return chat.encode_values(vocab, row)
  messages: Any = row.get("messages")
  example = chat.encode(vocab, messages)
  imitate = row.get("imitate", 1.0)
  if not isinstance(imitate, numbers.Real):
    raise ValueError("'imitate' must be a number")
  if imitate != 1:
    example["weights"] = [w * imitate for w in example["weights"]]
  return example


def dialogues(
    name: str, vocab: Vocab, *, files: str | os.PathLike | Sequence[Any],
    kind: str = "examples",
) -> Task:
  """Dialogues, or worked answers with values, from .jsonl(.gz) files.

  Args:
    name: of the task.
    vocab: the vocabulary.
    files: a file, a folder or a list of files; a shard each.
    kind: "examples", or "tokens" to mix them into pre-training text.

  Raises:
    UserError: no such file; later, a malformed row by file and line.
  """
  paths = corpus.find_files(files, suffixes=(".jsonl",))
  return Task(
      name=name, kind=kind, vocab=vocab, convert=chat_example,
      shards=[functools.partial(corpus.read_jsonl, p) for p in paths],
      source={"files": [p.name for p in paths]},
      key=json.dumps(corpus.fingerprint(paths)))


def generated(
    name: str, vocab: Vocab, *, rows: Callable[[], Iterable[Row]],
    key: str, kind: str = "examples", num_shards: int = 1,
    convert: Callable[[Vocab, Row], Example] = chat_example,
) -> Task:
  """Rows from a Python function, such as the problems of `lm.data.problems`.

  Args:
    name: of the task.
    vocab: the vocabulary.
    rows: called without arguments, gives dicts, the same ones each time; it
      pickles (a module's function or a partial of one).
    key: changes whenever the rows would; the seed and the arguments.
    kind: "examples" or "tokens".
    num_shards: each of which calls `rows` and keeps every n-th.
    convert: as in `Task`; by default dialogues and worked answers.
  """
  return Task(
      name=name, kind=kind, vocab=vocab, convert=convert,
      shards=[functools.partial(_every, rows, name, i, num_shards)
              for i in range(num_shards)],
      source={"generator": _title(rows), "key": key},
      key=json.dumps([_title(rows), key]))


def _every(rows: Callable[[], Iterable[Row]], name: str, shard: int,
           num_shards: int) -> Iterator[tuple[str, Row]]:
  for i, row in enumerate(rows()):
    if i % num_shards == shard:
      yield f"{name}, row {i}", row


def _title(rows: Callable) -> str:
  function = getattr(rows, "func", rows)
  return f"{function.__module__}.{function.__qualname__}"


def digest(*parts: Any) -> str:
  """A short key of JSON-able parts, for `generated`."""
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
