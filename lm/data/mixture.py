"""Mixtures by name: what a config says of its data, as tasks and as batches.

A mixture is described by plain dicts, one for each part:

    {"text": {"kind": "text", "rate": 0.8, "path": "builtin"},
     "games": {"kind": "game24", "rate": 0.2, "count": 20_000}}

`rate` is the part's share of tokens (0 leaves it out), `kind` one of `KINDS`,
and the other fields are the arguments of that kind's function below. Every kind
has a "train" and a "validation" split that do not meet: documents are held out
by name, dialogues by their first question, so a puzzle held out from one stage
is held out from all that have the same `holdout`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import functools
import inspect
import itertools
import os
import pathlib
from typing import Any

from lm import paths
from lm.data import chat, corpus, dialogues, pipeline, prepare, store, tasks
from lm.data import problems as problems_lib
from lm.data.problems import game24
from lm.data.problems import task as task_lib
from lm.data.vocab import Vocab
from lm.types import Batch, UserError

Spec = Mapping[str, Any]
Specs = Mapping[str, Spec]
Rows = Iterator[tuple[str, tasks.Row]]
_SHARD_ROWS = 10_000  # Of a generator; each shard draws from a seed of its own.
_VALIDATION_ROWS = 20_000  # Drawn at most; those of held-out questions stay.
_NO_VALUES = ("data.sources.{}: values belong to examples, not to pre-training"
              " text")


def text(
    name: str, vocab: Vocab, form: str, split: str, *,
    path: str = "builtin", holdout: float = 0.01, share: float = 1.0,
) -> tasks.Task:
  """Documents of the built-in corpus or of a folder of text.

  Args:
    name: of the part, as in every kind.
    vocab: the vocabulary.
    form: "tokens" (a stream, for pre-training) or "examples" (packed rows).
    split: "train" or "validation".
    path: "builtin", or a folder or file of .txt, .md, .py, .jsonl (or .gz).
    holdout: share of the documents that is "validation".
    share: of the documents that is used at all.
  """
  if form != "tokens":
    raise UserError(f"data.sources.{name}: text has no turns to train on: use"
                    " it in pre-training only")
  documents = _builtin() if path == "builtin" else corpus.load(path)
  if share < 1:
    documents = corpus.Corpus(
        [functools.partial(_some, read, share) for read in documents.shards],
        {**documents.source, "share": share}, f"{documents.key} {share}")
  return tasks.text(name, vocab, documents=documents, split=split,
                    holdout=holdout)


_builtin = functools.cache(corpus.builtin)


def _some(read: Callable[[], Iterable[corpus.Named]], share: float
          ) -> Iterator[corpus.Named]:
  for name, content in read():
    if corpus.split_of(f"share {name}", share) == "validation":
      yield name, content


def documentation(
    name: str, vocab: Vocab, form: str, split: str, *, seed: int = 0,
    holdout: float = 0.05, max_characters: int = 300,
) -> tasks.Task:
  """Questions about Python's documentation, with their answers."""
  rows = functools.partial(
      dialogues.documentation, seed, split=split, holdout=holdout,
      max_characters=max_characters)
  return _task(name, vocab, form, [functools.partial(_named, rows, name)],
               _builtin().key, split, seed, holdout, max_characters)


def chatterbot(
    name: str, vocab: Vocab, form: str, split: str, *, path: str = "",
    language: str = "english", holdout: float = 0.05, optional: bool = False,
) -> tasks.Task | None:
  """Small talk of the package chatterbot-corpus.

  Args:
    name, vocab, form, split: see `text`.
    path: its folder; by default that of the installed package.
    language: a folder of the package.
    holdout: share of the questions that is "validation".
    optional: whether to do without when it is not installed.
  """
  root = pathlib.Path(path) if path else dialogues.installed_chatterbot()
  if root is None and optional:
    return None
  rows = functools.partial(dialogues.chatterbot, root, language=language)
  key = corpus.fingerprint(sorted(root.rglob("*.yml"))) if root else None
  return _task(name, vocab, form,
               [functools.partial(_split, rows, name, split, holdout)],
               key, language, split, holdout)


def chats(
    name: str, vocab: Vocab, form: str, split: str, *, path: str,
    holdout: float = 0.02,
) -> tasks.Task:
  """Dialogues, or worked answers with values, of .jsonl(.gz) files."""
  paths = corpus.find_files(path, suffixes=(".jsonl",))
  return _task(name, vocab, form,
               [functools.partial(_jsonl, p, split, holdout) for p in paths],
               corpus.fingerprint(paths), split, holdout)


def games(
    name: str, vocab: Vocab, form: str, split: str, *, count: int = 20_000,
    seed: int = 0, holdout: float = 0.04,
) -> tasks.Task:
  """Games of 24 with worked answers; as "tokens" they are transcripts.

  Args:
    name, vocab, form, split: see `text`.
    count: games drawn; those of the other split are left out.
    seed: of the draw.
    holdout: share of the training puzzles that is "validation". The paper's
      test games are in neither.
  """
  return _drawn(name, vocab, form, split, game24.dialogues, count, seed,
                holdout)


def game_values(
    name: str, vocab: Vocab, form: str, split: str, *, count: int = 20_000,
    seed: int = 0, holdout: float = 0.04, solved: float = 0.3,
    first: float = 0.35, sound: float = 0.0,
) -> tasks.Task:
  """Games of 24 with the outcome of each line, as "examples" only.

  Arguments as those of `games` and of `game24.value_examples`.
  """
  if form != "examples":
    raise UserError(_NO_VALUES.format(name))
  return _drawn(name, vocab, form, split, game24.value_examples, count, seed,
                holdout, solved=solved, first=first, sound=sound)


def problems(
    name: str, vocab: Vocab, form: str, split: str, *, task: str,
    what: str = "solutions", count: int = 20_000, seed: int = 0,
    holdout: float = 0.04, dials: Mapping[str, int] | None = None,
    solved: float | None = None, first: float | None = None,
    sound: float | None = None,
) -> tasks.Task:
  """Problems of any task in `lm.data.problems`, of its "train" split.

  Args:
    name, vocab, form, split: see `text`.
    task: its name.
    what: as in `task.dialogues`, or "values": the outcome of each line.
    count, seed: of the draw, as in `games`.
    holdout: share of the problems that is "validation", whatever is asked about
      them. The task's own test splits are in neither.
    dials: of the task.
    solved, first, sound: as in `task.value_examples`, for "values" only.
  """
  problems_lib.make_task(task, **dict(dials or {}))
  options = {"solved": solved, "first": first, "sound": sound}
  options = {k: v for k, v in options.items() if v is not None}
  if what not in task_lib.WHAT:
    raise UserError(f"data.sources.{name}.what is {what!r}:"
                    f" {task_lib.nearest(what, task_lib.WHAT)}")
  if what in ("values", "facts") and form != "examples":
    raise UserError(_NO_VALUES.format(name))
  if options and what != "values":
    raise UserError(f"data.sources.{name}: {', '.join(options)} belong to"
                    f" what='values', not to {what!r}")
  return _drawn(name, vocab, form, split, problems_lib.rows, count, seed,
                holdout, task=task, what=what,
                dials=sorted((dials or {}).items()), **options)


KINDS: dict[str, Callable[..., tasks.Task | None]] = {
    "text": text, "documentation": documentation, "chatterbot": chatterbot,
    "dialogues": chats, "game24": games, "game24_value": game_values,
    "problems": problems,
}


# ------------------------------------------------------------------- building


def make_task(
    name: str, spec: Spec, vocab: Vocab, *, form: str, split: str = "train"
) -> tasks.Task | None:
  """The task of one part; None for an optional one that is not there.

  Raises:
    UserError: an unknown kind or field (the nearest known one is named), or
      data that is missing or malformed.
  """
  fields = {k: v for k, v in spec.items() if k not in ("kind", "rate")}
  kind = spec.get("kind")
  if kind not in KINDS:
    raise UserError(f"data.sources.{name}.kind is {kind!r}:"
                    f" {task_lib.nearest(str(kind), KINDS)}")
  known = [p.name for p in inspect.signature(KINDS[kind]).parameters.values()
           if p.kind == inspect.Parameter.KEYWORD_ONLY]
  for key in fields:
    if key not in known:
      raise UserError(f"data.sources.{name} has no field {key!r}:"
                      f" {task_lib.nearest(key, [*known, 'kind', 'rate'])}")
  try:
    return KINDS[kind](name, vocab, form, split, **fields)
  except TypeError as e:
    raise UserError(f"data.sources.{name}: {e}") from e


def write(
    specs: Specs, vocab: Vocab, folder: str | os.PathLike, *, form: str,
    split: str = "train", length: int, processes: int | None = None,
) -> dict[str, pathlib.Path]:
  """Prepares every part once; returns the folder of each.

  Examples longer than a row are left out, and so are parts of which nothing is
  held out from the validation split. Each description has a folder of its
  own, so that stages, seeds and configs may share `folder`.

  Args:
    specs: the parts.
    vocab: the vocabulary.
    folder: where the parts' folders lie; may be a `gs://` path.
    form: "tokens" or "examples".
    split: "train" or "validation".
    length: tokens per row.
    processes: as in `prepare.write`.
  """
  found = {}
  for name in _used(specs):
    task = make_task(name, specs[name], vocab, form=form, split=split)
    if task is None:
      continue
    mark = tasks.digest(form, task.key, vocab.hash)[:8]
    where = paths.path(folder) / f"{name}-{split}-{mark}"
    if split != "train" and not paths.is_file(where / store.MANIFEST) and (
        next(task.examples(), None) is None):
      continue
    prepare.write(task, where, processes=processes, too_long="drop",
                  lengths=(length,) if form == "examples" else ())
    found[name] = where
  if not found and split != "train":
    raise UserError("data.sources hold nothing out: raise the holdout of one")
  if not found:
    raise UserError("data.sources is empty: name at least one source whose rate"
                    " is not 0")
  return found


def _used(specs: Specs) -> list[str]:
  return sorted(k for k, v in specs.items() if v.get("rate", 1.0) != 0)


def sources(
    folders: Mapping[str, pathlib.Path], *, form: str, length: int, batch: int,
    seed: int = 0, shuffle: bool = True, process_index: int = 0,
    process_count: int = 1,
) -> dict[str, pipeline.Source]:
  """A source for each part that `write` prepared."""
  options: dict[str, Any] = dict(
      length=length, batch=batch, seed=seed, shuffle=shuffle,
      process_index=process_index, process_count=process_count)
  if form == "tokens":
    return {k: pipeline.windows(v, **options) for k, v in folders.items()}
  return {k: pipeline.packed(v, too_long="drop", **options)
          for k, v in folders.items()}


def mixed(
    specs: Specs, parts: Mapping[str, pipeline.Source]
) -> pipeline.Source:
  """The parts in one batch, by their rates."""
  return pipeline.mix(list(parts.values()),
                      [float(specs[k].get("rate", 1.0)) for k in parts])


def once(
    parts: Iterable[pipeline.Source], *, batches: int | None = None
) -> list[Batch]:
  """All rows of the parts once, or an even choice of so many batches."""
  every = list(itertools.chain.from_iterable(p.once() for p in parts))
  if batches is None or len(every) <= batches:
    return every
  return [every[i * len(every) // batches] for i in range(batches)]


def held_out(
    name: str, spec: Spec, vocab: Vocab, *, count: int
) -> list[tasks.Row]:
  """Up to `count` validation rows of one part, each question once."""
  task = make_task(name, spec, vocab, form="examples", split="validation")
  found: dict[str, tasks.Row] = {}
  for shard in task.shards if task is not None else ():
    for _, row in shard():
      if len(found) >= count:
        break
      found.setdefault(question(row), row)
  return list(found.values())


def texts(specs: Specs, *, games_drawn: int = 3_000) -> Iterator[str]:
  """Training texts of all parts, for training a vocabulary."""
  for name in _used(specs):
    spec = dict(specs[name])
    if spec.get("kind") in ("game24", "problems"):
      spec["count"] = min(spec.get("count", games_drawn), games_drawn)
    task = make_task(name, spec, None, form="tokens")  # type: ignore
    for shard in task.shards if task is not None else ():
      for _, row in shard():
        yield row["text"] if "text" in row else transcript(row)


# ----------------------------------------------------------------------- rows


def transcript(row: tasks.Row) -> str:
  """A dialogue as plain text: its turns, one below the other."""
  chat.check(row.get("messages"))
  return "\n".join(m["content"] for m in row["messages"])


def transcript_example(vocab: Vocab, row: tasks.Row) -> tasks.Example:
  """A dialogue as a document of pre-training text."""
  return tasks.text_example(vocab, {"text": transcript(row)})


def question(row: tasks.Row) -> str:
  """What a row asks first; rows are held out by it."""
  for key in ("holdout", "prompt"):
    if key in row:
      return str(row[key])
  messages: Any = row.get("messages") or [{}]
  return next((str(m.get("content")) for m in messages
               if isinstance(m, Mapping) and m.get("role") == "user"), "")


def _task(name: str, vocab: Vocab, form: str,
          shards: Sequence[Callable[[], Rows]], *key: Any) -> tasks.Task:
  convert = (transcript_example if form == "tokens" else tasks.chat_example)
  return tasks.Task(
      name=name, kind=form, vocab=vocab, shards=shards, convert=convert,
      source={"part": name}, key=tasks.digest(*key))


def _drawn(name, vocab, form, split, generator, count, seed, holdout,
           **options) -> tasks.Task:
  """A task that draws rows from a generator, shard by shard."""
  if count < 1:
    raise UserError(f"data.sources.{name}.count is {count}: draw at least 1")
  if split != "train":
    count = min(count, _VALIDATION_ROWS)
  base = 100_000 * (2 * seed + (split != "train"))
  shards = []
  for i, start in enumerate(range(0, count, _SHARD_ROWS)):
    rows = functools.partial(generator, base + i,
                             min(_SHARD_ROWS, count - start), **options)
    shards.append(functools.partial(
        _split, rows, f"{name} {base + i}", split, holdout))
  return _task(name, vocab, form, shards, generator.__qualname__, base, count,
               split, holdout, sorted(options.items()))


def _named(rows: Callable[[], Iterable[tasks.Row]], name: str) -> Rows:
  for i, row in enumerate(rows()):
    yield f"{name}, row {i}", row


def _split(rows: Callable[[], Iterable[tasks.Row]], name: str, split: str,
           holdout: float) -> Rows:
  return _kept(_named(rows, name), split, holdout)


def _jsonl(path: pathlib.Path, split: str, holdout: float) -> Rows:
  return _kept(corpus.read_jsonl(path), split, holdout)


def _kept(rows: Rows, split: str, holdout: float) -> Rows:
  for where, row in rows:
    if corpus.split_of(question(row), holdout) == split:
      yield where, row
