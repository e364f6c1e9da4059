"""How many tokens a second does one host read for pre-training?

    python benchmarks/pipeline.py

Both get the same tokenized documents of the built-in corpus and give batches
of 8 rows of 1,024. Ours reads windows of the flat file that `prepare` wrote;
the peer is seqio's language-model feature converter, which packs. Tokens of
real text per second; seqio leaves out what does not fit.
"""

import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags
from common import alternate
import numpy as np

from lm.data import corpus, pipeline, prepare, tasks, vocab

LENGTH, BATCH, TOKENS = 1024, 8, 4_000_000


def documents() -> list[list[int]]:
  found, count, bytes_ = [], 0, vocab.ByteVocab()
  for _, text in corpus.builtin().read():
    found.append([*bytes_.encode(text, specials=False), bytes_.eos_id])
    count += len(found[-1])
    if count > TOKENS:
      break
  return found


def ours(folder: pathlib.Path) -> float:
  source = pipeline.windows(folder, length=LENGTH, batch=BATCH, verify=False)
  steps = int(source.epoch_steps)
  start = time.perf_counter()
  for _ in range(steps):
    source()
  return steps * BATCH * LENGTH / (time.perf_counter() - start)


def peer(found: list[list[int]]) -> float:
  import seqio
  import tensorflow as tf
  dataset = tf.data.Dataset.from_generator(
      lambda: ({"targets": np.array(ids, np.int32)} for ids in found),
      output_signature={"targets": tf.TensorSpec([None], tf.int32)})
  converter = seqio.LMFeatureConverter(pack=True)
  rows = converter(dataset, {"targets": LENGTH}).batch(BATCH)
  start, count = time.perf_counter(), 0
  for batch in rows.as_numpy_iterator():
    count += int((batch["decoder_segment_ids"] > 0).sum())
  return count / (time.perf_counter() - start)


def _row(_, row):
  return {"tokens": row["ids"]}


def main() -> None:
  flags.FLAGS(["pipeline"])  # seqio reads flags.
  found = documents()
  # seqio refuses longer documents; ours needs no such cut.
  pieces = [ids[i:i + LENGTH] for ids in found
            for i in range(0, len(ids), LENGTH)]
  with tempfile.TemporaryDirectory() as folder:
    task = tasks.generated(
        "documents", vocab.ByteVocab(),
        rows=lambda: ({"ids": ids} for ids in found),
        key="1", kind="tokens", num_shards=1, convert=_row)
    prepare.write(task, pathlib.Path(folder) / "flat", processes=1)
    alternate("pipeline", unit="tokens/s", runs=3,
              ours=lambda: ours(pathlib.Path(folder) / "flat"),
              peer=lambda: peer(pieces))


if __name__ == "__main__":
  main()
