"""seqio defines, grain delivers: both paths give the same examples."""

import functools
import json

import numpy as np
import pytest

from lm.data import corpus, pipeline, prepare, seqio_tasks, store, tasks
from lm.data import vocab as vocab_lib
from lm.types import UserError

LINES = [f"Line {i} says: one, two, three and {i * i}; naïve <|end|> text."
         for i in range(60)]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocab") / "bpe.model"
  return vocab_lib.train(LINES, 330, path=path), path


def _t5x_task(name, folder, vocabulary):
  """A task as people write them for T5X, with nothing of ours in it."""
  import seqio
  import tensorflow as tf

  folder.mkdir(exist_ok=True)
  for i in range(3):
    (folder / f"part{i}.txt").write_text("\n".join(LINES[i::3]) + "\n")

  def question(dataset):
    return dataset.map(lambda line: {
        "inputs": tf.strings.join(["say: ", tf.strings.substr(line, 0, 7)]),
        "targets": line})

  feature = functools.partial(seqio.Feature, vocabulary, dtype=tf.int32)
  seqio.TaskRegistry.add(
      name,
      source=seqio.TextLineDataSource(
          {"train": str(folder / "part*.txt")}),
      preprocessors=[question, seqio.preprocessors.tokenize,
                     seqio.CacheDatasetPlaceholder(),
                     seqio.preprocessors.append_eos],
      output_features={"inputs": feature(add_eos=False),
                       "targets": feature(add_eos=True)})


def test_a_t5x_task_gives_the_same_examples_on_both_paths(vocab, tmp_path):
  import seqio

  vocabulary = seqio.SentencePieceVocabulary(str(vocab[1]))
  _t5x_task("t5x_style", tmp_path / "lines", vocabulary)
  # Plain seqio, as T5X would call it.
  dataset = seqio.get_dataset(
      "t5x_style", {"inputs": 64, "targets": 200}, shuffle=False,
      dataset_split="train", feature_converter=seqio.PrefixLMFeatureConverter(
          pack=False, loss_on_targets_only=True))
  want = []
  for row in dataset.as_numpy_iterator():
    targets, weights = row["decoder_target_tokens"], row["decoder_loss_weights"]
    count = np.flatnonzero(weights)[-1] + 1
    want.append((targets[:count].tolist(), weights[:count].tolist()))
  assert len(want) == 60
  # Ours.
  manifest = prepare.write(seqio_tasks.task("t5x_style"), tmp_path / "out")
  assert manifest.vocab["size"] == vocabulary.vocab_size
  assert manifest.counts["documents"] == 60
  got = [(e["tokens"].tolist(), e["weights"].tolist())
         for e in store.read_examples(manifest)]
  assert got == want
  assert vocabulary.decode(want[0][0]).startswith("say: Line")
  # And through the reader that trains, packed.
  source = pipeline.packed(tmp_path / "out", length=256, batch=4)
  packed = []
  for batch in source.once():
    for row in range(4):
      segments = batch.segments_BT[row]
      for s in range(1, segments.max() + 1):
        at = segments == s
        packed.append((batch.tokens_BT[row][at].tolist(),
                       [0.0, *batch.weights_BT[row][at].tolist()[:-1]]))
  assert sorted(packed) == sorted(want)
  # In more shards: the same examples.
  more = prepare.write(seqio_tasks.task("t5x_style", num_shards=2),
                       tmp_path / "two", processes=1)
  assert len(more.files) == 2
  again = [e["tokens"].tolist() for e in store.read_examples(more)]
  assert sorted(again) == sorted(tokens for tokens, _ in want)


def test_text_is_the_same_with_and_without_seqio(vocab, tmp_path):
  import seqio

  v = vocab[0]
  folder = tmp_path / "text"
  folder.mkdir()
  (folder / "a.jsonl").write_text(
      "".join(json.dumps({"text": line}) + "\n" for line in LINES))
  (folder / "b.txt").write_text("\n".join(LINES))
  documents = corpus.folder(folder)
  ours = {s: tasks.text("plain", v, documents=documents, split=s, holdout=0.2)
          for s in ("train", "validation")}
  seqio_tasks.register("local_text", ours)
  for split, plain in ours.items():
    want = [e["tokens"] for e in plain.examples()]
    # `seqio.get_dataset`, unshuffled and unpacked, with their converter.
    dataset = seqio.get_dataset(
        "local_text", {"targets": 4096}, shuffle=False, dataset_split=split,
        feature_converter=seqio.LMFeatureConverter(pack=False))
    rows = list(dataset.as_numpy_iterator())
    got = [r["decoder_target_tokens"][r["decoder_loss_weights"] > 0].tolist()
           for r in rows]
    assert got == want and len(want) > 5
    task = seqio_tasks.task("local_text", split=split)
    assert task.kind == "tokens" and task.vocab.hash == v.hash
    through = prepare.write(task, tmp_path / f"seqio-{split}")
    direct = prepare.write(plain, tmp_path / f"plain-{split}")
    assert through.digest == direct.digest
    read = [d.tolist() for d in store.read_documents(direct)]
    assert read == want
  # What `<|end|>` in the text says is spelled out, not an end.
  assert all(w.count(v.eos_id) == 1 for w in want)
  vocabulary = seqio_tasks.seqio_vocab(v)
  assert vocabulary.decode(want[0][:-1]) == v.decode(want[0][:-1])
  assert vocabulary.vocab_size == v.size and vocabulary.eos_id == v.eos_id


def _rows():
  for i in range(20):
    yield {"prompt": f"count to {i}", "lines": ["1\n", "2\n"],
           "labels": [i / 20, None], "imitate": float(i % 2)}


def test_examples_with_values_pass_through_seqio(tmp_path):
  v = vocab_lib.ByteVocab()
  plain = tasks.generated("values", v, rows=_rows, key="1")
  seqio_tasks.register("values", {"train": plain})
  direct = prepare.write(plain, tmp_path / "plain")
  through = prepare.write(seqio_tasks.task("values"), tmp_path / "seqio")
  assert direct.counts == through.counts
  for a, b in zip(store.read_examples(direct), store.read_examples(through),
                  strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def _make_tfds(folder):
  """A folder of TFDS files, without a builder class."""
  import tensorflow_datasets as tfds

  path = folder / "tiny_texts" / "1.0.0"
  path.mkdir(parents=True)
  info = tfds.core.DatasetInfo(
      builder=tfds.core.dataset_info.DatasetIdentity(
          name="tiny_texts", version="1.0.0", data_dir=str(path),
          module_name="none"),
      features=tfds.features.FeaturesDict({"body": tfds.features.Text()}))
  writer = tfds.core.SequentialWriter(info, max_examples_per_shard=40)
  writer.initialize_splits(["train"])
  writer.add_examples({"train": ({"body": x} for x in LINES)})
  writer.close_all()


def test_tfds_folder_and_mixture(vocab, tmp_path):
  import seqio

  v = vocab[0]
  _make_tfds(tmp_path)
  seqio_tasks.register_tfds("from_tfds", v, tfds_name="tiny_texts:1.0.0",
                            text_key="body", data_dir=str(tmp_path))
  task = seqio_tasks.task("from_tfds")
  got = sorted(e["tokens"].tolist() for e in task.examples())
  assert got == sorted([*v.encode(x, specials=False), v.eos_id] for x in LINES)
  seqio_tasks.register(
      "few", {"train": tasks.text("few", v, documents=_corpus(tmp_path))})
  seqio_tasks.register_mixture("both", {"from_tfds": 3.0, "few": 1.0})
  assert seqio.MixtureRegistry.get("both").num_input_examples is not None
  parts = seqio_tasks.mixture("both")
  assert [(t.name, r) for t, r in parts] == [("few", 1.0), ("from_tfds", 3.0)]
  sources = []
  for part, _ in parts:
    prepare.write(part, tmp_path / "out" / part.name)
    sources.append(pipeline.windows(tmp_path / "out" / part.name, length=16,
                                    batch=8))
  mixed = pipeline.mix(sources, [r for _, r in parts])
  assert mixed().tokens_BT.shape == (8, 16)
  assert mixed.rates == [0.25, 0.75]


def test_tfds_builder_class(vocab, tmp_path):
  """A builder of one's own, prepared by TFDS itself, without download."""
  import tensorflow_datasets as tfds

  class OwnTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tmp_path

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(
              {"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
      del dl_manager
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i, line in enumerate(LINES):
        yield i, {"text": line}

  OwnTexts(data_dir=str(tmp_path)).download_and_prepare()
  v = vocab[0]
  seqio_tasks.register_tfds("own_builder", v, tfds_name="own_texts:1.0.0",
                            data_dir=str(tmp_path), splits=["train"])
  got = [e["tokens"].tolist() for e in seqio_tasks.task("own_builder")
         .examples()]
  assert sorted(got) == sorted(
      [*v.encode(x, specials=False), v.eos_id] for x in LINES)


def _corpus(folder):
  (folder / "few.txt").write_text("A few words.\n" * 50)
  return corpus.folder(folder / "few.txt")


def test_unknown_names_are_user_errors(vocab):
  with pytest.raises(UserError, match="no seqio task 'nothing'"):
    seqio_tasks.task("nothing")
  v = vocab_lib.ByteVocab()
  plain = tasks.generated("once", v, rows=_rows, key="1")
  seqio_tasks.register("once", {"train": plain})
  with pytest.raises(UserError, match="already registered"):
    seqio_tasks.register("once", {"train": plain})
  with pytest.raises(UserError, match="no split 'test'"):
    seqio_tasks.task("once", split="test")
