"""seqio tasks and mixtures, both ways; TensorFlow loads on the first call.

`register` puts a `Task` of ours (text, dialogues, generated problems) into
seqio's registry, `register_tfds` a TFDS builder or folder, `register_mixture` a
mixture: always by an explicit call, never on import. `task` makes a `Task` of
whatever is registered, people's own T5X-style tasks among them, so that
`lm.data.prepare` can write it once and grain can deliver it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
from typing import Any

import numpy as np

from lm.data import store
from lm.data import tasks as tasks_lib
from lm.data.vocab import Vocab
from lm.types import UserError

# pylint: disable=g-import-not-at-top


@functools.cache
def _vocabulary_class():
  import seqio
  import tensorflow as tf

  class SeqioVocab(seqio.Vocabulary):
    """A `Vocab` as seqio sees it; text in data cannot forge specials."""

    def __init__(self, vocab: Vocab):
      super().__init__()
      self.vocab = vocab

    bos_id = property(lambda self: None)
    eos_id = property(lambda self: self.vocab.eos_id)
    unk_id = property(lambda self: None)
    _base_vocab_size = property(lambda self: self.vocab.size)

    def _encode(self, s):
      return self.vocab.encode(s, specials=False)

    def _decode(self, ids):
      return self.vocab.decode(ids)

    def _encode_tf(self, s):
      encode = lambda raw: np.array(self._encode(raw.decode()), np.int32)
      ids = tf.numpy_function(encode, [s], tf.int32)
      return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids):
      decode = lambda raw: self._decode(raw.tolist())
      return tf.numpy_function(decode, [ids], tf.string)

    def __eq__(self, other):
      return isinstance(other, SeqioVocab) and (
          self.vocab.hash == other.vocab.hash)

    def __hash__(self):
      return hash(self.vocab.hash)

  return SeqioVocab


def seqio_vocab(vocab: Vocab):
  """The vocabulary as a `seqio.Vocabulary`."""
  return _vocabulary_class()(vocab)


class ForeignVocab(Vocab):
  """Somebody's `seqio.Vocabulary` as a `Vocab`, to prepare their tasks."""

  def __init__(self, vocabulary: Any):
    self.vocabulary = vocabulary
    self.size = vocabulary.vocab_size
    self.eos_id = vocabulary.eos_id

  def _encode(self, text: str) -> list[int]:
    return list(self.vocabulary.encode(text))

  def decode(self, ids) -> str:
    return self.vocabulary.decode([int(i) for i in ids])

  def serialize(self) -> bytes:
    model = getattr(self.vocabulary, "sp_model", None)
    return model or f"{type(self.vocabulary).__name__}:{self.size}".encode()

  def __reduce__(self):
    return ForeignVocab, (self.vocabulary,)


def register(name: str, splits: Mapping[str, tasks_lib.Task]):
  """Registers tasks of ours with seqio, one for each split.

  Args:
    name: in seqio's registry.
    splits: {"train": ..., "validation": ...}, of one kind and vocabulary.

  Returns:
    The `seqio.Task`. Text ("tokens") has the feature `targets` and is tokenized
    by seqio's own preprocessors; examples have `targets` and, as floats,
    `weights`, `values`, `value_weights`.
  """
  import seqio
  import tensorflow as tf

  first = next(iter(splits.values()))
  vocabulary = seqio_vocab(first.vocab)
  text = first.convert is tasks_lib.text_example
  key = "text" if text else "row"

  def dataset(split, shuffle_files=False, seed=None):
    del shuffle_files, seed  # seqio's buffer shuffles, if asked to.

    def rows():
      for read in splits[split].shards:
        for _, row in read():
          yield {key: row["text"] if text else json.dumps(row)}

    return tf.data.Dataset.from_generator(
        rows, output_signature={key: tf.TensorSpec([], tf.string)})

  targets = seqio.Feature(vocabulary, add_eos=text, dtype=tf.int32)
  if text:
    features = {"targets": targets}
    preprocessors = [
        functools.partial(seqio.preprocessors.rekey,
                          key_map={"targets": "text"}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos,
    ]
  else:
    number = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False,
                           dtype=tf.float32)
    features = {"targets": targets,
                **{f: number for f in store.FEATURES}}
    preprocessors = [functools.partial(_convert_rows, task=first),
                     seqio.CacheDatasetPlaceholder()]
  return _add(name, lambda: seqio.Task(
      name, seqio.FunctionDataSource(dataset, list(splits)),
      output_features=features, preprocessors=preprocessors))


def _convert_rows(dataset, task: tasks_lib.Task):
  """seqio preprocessor: JSON rows to token and weight features."""
  import tensorflow as tf

  def convert(raw):
    example = task.convert(task.vocab, json.loads(raw))
    count = len(example["tokens"])
    weights = [np.asarray(example.get(f, np.full(count, f == "weights")),
                          np.float32) for f in store.FEATURES]
    return [np.asarray(example["tokens"], np.int32), *weights]

  def convert_tf(row):
    types = [tf.int32] + [tf.float32] * len(store.FEATURES)
    outputs = tf.numpy_function(convert, [row["row"]], types)
    return {key: tf.ensure_shape(value, [None]) for key, value in
            zip(("targets", *store.FEATURES), outputs, strict=True)}

  return dataset.map(convert_tf)


def register_tfds(
    name: str, vocab: Vocab, *, tfds_name: str, text_key: str = "text",
    data_dir: str | None = None, splits: Sequence[str] | None = None,
    preprocessors: Sequence[Callable] = (),
):
  """Registers a TFDS data set of texts with seqio.

  Args:
    name: in seqio's registry.
    vocab: the vocabulary.
    tfds_name: "name:1.0.0" of a builder or, with `data_dir`, of a folder of
      prepared files that needs no builder class.
    text_key: the feature that holds the text; a `<|end|>` follows it.
    data_dir: where the prepared files are.
    splits: those to offer; by default all.
    preprocessors: seqio preprocessors to run first, on the raw features.
  """
  import seqio
  import tensorflow as tf

  return _add(name, lambda: seqio.Task(
      name,
      seqio.TfdsDataSource(tfds_name=tfds_name, tfds_data_dir=data_dir,
                           splits=splits),
      output_features={"targets": seqio.Feature(
          seqio_vocab(vocab), add_eos=True, dtype=tf.int32)},
      preprocessors=[
          *preprocessors,
          functools.partial(seqio.preprocessors.rekey,
                            key_map={"targets": text_key}),
          seqio.preprocessors.tokenize,
          seqio.CacheDatasetPlaceholder(),
          seqio.preprocessors.append_eos,
      ]))


def register_mixture(name: str, rates: Mapping[str, float]):
  """Registers a mixture of registered tasks.

  seqio itself draws *examples* at these rates; `lm.data.pipeline.mix` of the
  prepared tasks reads the same numbers as shares of *tokens*.
  """
  import seqio

  if name in seqio.MixtureRegistry.names():
    raise UserError(f"a seqio mixture {name!r} is already registered: choose"
                    " another name")
  return seqio.MixtureRegistry.add(name, list(rates.items()))


def _add(name: str, make: Callable):
  import seqio

  if name in seqio.TaskRegistry.names():
    raise UserError(f"a seqio task {name!r} is already registered: choose"
                    " another name")
  made = make()
  seqio.TaskRegistry.add_provider(name, made)
  return made


def task(
    name: str, *, split: str = "train", num_shards: int = 1,
    kind: str | None = None, register: Callable[[], None] | None = None,  # pylint: disable=redefined-outer-name
    key: str = "", use_cached: bool = False,
) -> tasks_lib.Task:
  """A `Task` of what is registered with seqio under `name`.

  All preprocessors run; nothing is shuffled, trimmed or packed. Features:
  `targets`, or `inputs` then `targets` with loss on the targets only; and
  `weights`, `values`, `value_weights` where the task has them.

  Args:
    name: of a seqio task.
    split: of the task.
    num_shards: files to write (and the most processes that can help).
    kind: "tokens" or "examples"; by default tokens if `targets` is all there
      is and ends in EOS.
    register: registers the task in a new process; a module's function. Without
      it, prepare with processes=1.
    key: change it when the data changes in a way that the name does not tell.
    use_cached: whether to read seqio's own cache of the task.

  Raises:
    UserError: no such task or split.
  """
  found = _find(name, register)
  features = found.output_features
  if split not in found.splits:
    raise UserError(f"seqio task {name!r} has no split {split!r}: it has"
                    f" {sorted(found.splits)}")
  if "targets" not in features:
    raise UserError(f"seqio task {name!r} has no feature 'targets': it has"
                    f" {sorted(features)}")
  vocabulary = features["targets"].vocabulary
  if kind is None:
    stream = set(features) == {"targets"} and features["targets"].add_eos
    kind = "tokens" if stream else "examples"
  vocab = getattr(vocabulary, "vocab", None)
  return tasks_lib.Task(
      name=name, kind=kind, convert=join_features,
      vocab=vocab if isinstance(vocab, Vocab) else ForeignVocab(vocabulary),
      shards=[functools.partial(_read, name, split, i, num_shards, register,
                                use_cached) for i in range(num_shards)],
      source={"seqio": name, "split": split},
      key=hashlib.sha256(json.dumps(
          [name, split, num_shards, key, use_cached]).encode()).hexdigest())


def mixture(name: str, *, register: Callable[[], None] | None = None,  # pylint: disable=redefined-outer-name
            **kwargs) -> list[tuple[tasks_lib.Task, float]]:
  """The tasks of a seqio mixture and their rates, to prepare and to mix."""
  import seqio

  if register is not None and name not in seqio.MixtureRegistry.names():
    register()
  if name not in seqio.MixtureRegistry.names():
    raise UserError(f"no seqio mixture {name!r} is registered")
  found = seqio.MixtureRegistry.get(name)
  return [(task(t.name, register=register, **kwargs), float(found.get_rate(t)))
          for t in sorted(found.tasks, key=lambda t: t.name)]


def _find(name: str, register: Callable[[], None] | None):  # pylint: disable=redefined-outer-name
  import seqio

  if register is not None and name not in seqio.TaskRegistry.names():
    register()
  if name not in seqio.TaskRegistry.names():
    raise UserError(f"no seqio task {name!r} is registered: register it, or"
                    " pass register=FUNCTION to do so in every process")
  return seqio.TaskRegistry.get(name)


def _read(name: str, split: str, shard: int, num_shards: int, register,  # pylint: disable=redefined-outer-name
          use_cached: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
  import seqio

  found = _find(name, register)
  info = (None if num_shards == 1 else
          seqio.ShardInfo(index=shard, num_shards=num_shards))
  dataset = found.get_dataset(
      sequence_length=None, split=split, shuffle=False, shard_info=info,
      use_cached=use_cached, trim_output_features=False)
  for i, row in enumerate(dataset.as_numpy_iterator()):
    yield f"{name}, {split} example {i}", row


def join_features(vocab: Vocab, row: Mapping[str, Any]) -> dict[str, Any]:
  """seqio features -> tokens and weights: inputs are read, targets learnt."""
  del vocab
  targets = np.asarray(row["targets"])
  inputs = np.asarray(row.get("inputs", ()), targets.dtype)
  if targets.ndim != 1 or inputs.ndim != 1:
    raise ValueError("'inputs' and 'targets' must be rows of token ids")
  example = {"tokens": np.concatenate([inputs, targets])}
  if inputs.size:
    example["weights"] = np.repeat([0.0, 1.0], [inputs.size, targets.size])
  for feature in store.FEATURES:
    if feature in row:
      example[feature] = np.concatenate(
          [np.zeros(inputs.size, np.float32), row[feature]])
  return example
