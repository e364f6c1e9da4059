"""Laws of the readers: purity in (seed, step), no loss, whole examples."""

import collections
import json
import shutil

import numpy as np
import pytest

from lm.data import packing, pipeline, prepare, readers, store, tasks
from lm.data import vocab as vocab_lib
from lm.types import UserError

VOCAB = vocab_lib.ByteVocab()
FIELDS = ("tokens_BT", "targets_BT", "weights_BT", "segments_BT",
          "positions_BT")


def _documents(count, low):
  """Documents of 1 to 39 ids from `low` to `low` + 3, and `<|end|>`."""
  rng = np.random.default_rng(low)
  for _ in range(count):
    ids = rng.integers(low, low + 4, rng.integers(1, 40)).tolist()
    yield {"ids": [*ids, VOCAB.eos_id]}


def _long_documents():
  return _documents(400, 0)


def _short_documents():
  return _documents(90, 10)


def _ids(vocab, row):
  del vocab
  return {"tokens": row["ids"]}


def _examples():
  """Examples whose tokens tell where they are from; id 0 in each of them."""
  rng = np.random.default_rng(1)
  for i in range(300):
    n = int(rng.integers(2, 30))
    yield {"ids": [i % 256, 0, *rng.integers(0, 256, n - 2).tolist()],
           "weights": rng.integers(0, 3, n).tolist(),
           "values": rng.random(n).tolist(),
           "value_weights": rng.integers(0, 2, n).tolist()}


def _sparse():
  """Examples that leave almost half of a row of 38 empty."""
  for i in range(200):
    yield {"ids": [i] * 20, "value_weights": [1.0] * 20}


def _full(vocab, row):
  del vocab
  return {"tokens": row["ids"],
          **{f: row[f] for f in store.FEATURES if f in row}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("prepared")
  for name, rows, convert, kind in (
      ("text", _long_documents, _ids, "tokens"),
      ("more", _short_documents, _ids, "tokens"),
      ("examples", _examples, _full, "examples"),
      ("sparse", _sparse, _full, "examples")):
    task = tasks.generated(name, VOCAB, rows=rows, key="1", kind=kind,
                           num_shards=3, convert=convert)
    prepare.write(task, root / name, processes=1)
  return root


def _sources(root, batch=8, **kwargs):
  options = dict(length=32, batch=batch, seed=5, **kwargs)
  text = lambda n, **k: pipeline.windows(root / n, **options, **k)
  return {
      "windows": text("text"),
      "separate": text("more", separate=True),
      "packed": pipeline.packed(root / "examples", **options),
      "mixture": pipeline.mix(
          [text("text"), pipeline.packed(root / "examples", **options),
           text("more")], [1, 2, 3]),
  }


NAMES = ("windows", "separate", "packed", "mixture")


def _same(a, b):
  for field in FIELDS:
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
  assert a.extra.keys() == b.extra.keys()
  for key in a.extra:
    np.testing.assert_array_equal(a.extra[key], b.extra[key])


def _join(batches):
  cat = lambda get: np.concatenate([get(b) for b in batches])
  return batches[0].replace(
      **{f: cat(lambda b, f=f: getattr(b, f)) for f in FIELDS},
      extra={k: cat(lambda b, k=k: b.extra[k]) for k in batches[0].extra})


@pytest.mark.parametrize("name", NAMES)
def test_same_global_batches_on_any_number_of_hosts(folders, name):
  alone = _sources(folders)[name]
  want = [alone() for _ in range(20)]
  assert len({b.tokens_BT.tobytes() for b in want}) > 10
  for hosts in (2, 4):
    each = [_sources(folders, process_index=i, process_count=hosts)[name]
            for i in range(hosts)]
    for batch in want:
      _same(_join([source() for source in each]), batch)


@pytest.mark.parametrize("name", NAMES)
def test_resumes_at_any_step_on_any_number_of_hosts(folders, name):
  source = _sources(folders)[name]
  want, states = [], []
  for _ in range(12):
    states.append(json.dumps(source.get_state()))
    want.append(source())
  assert max(map(len, states)) < 200
  for step in (0, 1, 7, 11):
    for hosts in (1, 2, 4):
      each = [_sources(folders, process_index=i, process_count=hosts)[name]
              for i in range(hosts)]
      for s in each:
        s.set_state(json.loads(states[step]))
      for batch in want[step:]:
        _same(_join([s() for s in each]), batch)


def test_another_seed_is_another_order(folders):
  one, two = (pipeline.windows(folders / "text", length=32, batch=8, seed=s)
              for s in (0, 1))
  assert (one().tokens_BT != two().tokens_BT).any()


def test_each_epoch_sees_every_row_once_in_another_order(folders):
  source = pipeline.packed(folders / "examples", length=32, batch=1, seed=5)
  rows = source.parts[0].num_rows
  assert source.epoch_steps == rows
  seen = [source().tokens_BT.tobytes() for _ in range(3 * rows)]
  epochs = [seen[i * rows : (i + 1) * rows] for i in range(3)]
  every = collections.Counter(b.tokens_BT.tobytes() for b in source.once())
  for epoch in epochs:
    assert collections.Counter(epoch) == every
  assert epochs[0] != epochs[1] != epochs[2]


def test_a_state_of_other_data_is_refused(folders):
  state = pipeline.windows(folders / "text", length=32, batch=8).get_state()
  for other in (dict(length=16, batch=8), dict(length=32, batch=4),
                dict(length=32, batch=8, seed=1),
                dict(length=32, batch=8, separate=True)):
    with pytest.raises(UserError, match="cannot resume"):
      pipeline.windows(folders / "text", **other).set_state(state)
  with pytest.raises(UserError, match="data="):
    pipeline.windows(folders / "more", length=32, batch=8).set_state(state)


def _stream(folder):
  manifest = store.open_folder(folder, "tokens")
  assert len(manifest.files) == 3  # Rows cross the borders of files.
  return np.concatenate([np.fromfile(p, "<u2") for p in manifest.paths])


@pytest.mark.parametrize("length", [1, 7, 32, 1000, 100_000])
def test_concatenate_and_split_loses_no_token(folders, length):
  stream = _stream(folders / "text")
  documents = [r["ids"] for i in range(3)  # In the order of the shards.
               for k, r in enumerate(_long_documents()) if k % 3 == i]
  assert stream.tolist() == sum(documents, [])
  source = pipeline.windows(folders / "text", length=length, batch=4,
                            shuffle=False)
  targets, inputs = [], []
  for batch in source.once():
    real = batch.segments_BT > 0
    np.testing.assert_array_equal(batch.weights_BT, real)
    targets.append(batch.targets_BT[real])
    inputs.append(batch.tokens_BT[real])
  np.testing.assert_array_equal(np.concatenate(targets), stream)
  np.testing.assert_array_equal(
      np.concatenate(inputs), [VOCAB.eos_id, *stream[:-1]])


def test_separate_documents_get_segments_and_positions(folders):
  source = pipeline.windows(folders / "text", length=50, batch=3, separate=True)
  for _ in range(10):
    batch = source()
    for tokens, segments, positions in zip(
        batch.tokens_BT, batch.segments_BT, batch.positions_BT, strict=True):
      segment, position = 1, 0
      for i, token in enumerate(tokens[: np.count_nonzero(segments)]):
        if token == VOCAB.eos_id and i:
          segment, position = segment + 1, 0
        assert (segments[i], positions[i]) == (segment, position)
        position += 1


def _unpack(batch):
  """(tokens, targets, weights, values, value weights) of each example."""
  for row in range(len(batch.tokens_BT)):
    segments = batch.segments_BT[row]
    used = np.count_nonzero(segments)
    assert (segments[used:] == 0).all()
    assert (np.diff(segments[:used]) >= 0).all()
    for array in [batch.tokens_BT, batch.targets_BT, batch.weights_BT,
                  batch.positions_BT, *batch.extra.values()]:
      assert (array[row][used:] == 0).all()
    assert set(segments[:used]) == set(range(1, segments.max() + 1))
    for s in range(1, segments.max() + 1):
      at = np.flatnonzero(segments == s)
      np.testing.assert_array_equal(
          batch.positions_BT[row][at], np.arange(len(at)))
      yield [a[row][at] for a in (
          batch.tokens_BT, batch.targets_BT, batch.weights_BT,
          batch.extra["values_BT"], batch.extra["value_weights_BT"])]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("length", [29, 64, 500])
def test_packing_keeps_every_example_whole(
    folders, length, in_memory, monkeypatch):
  monkeypatch.setattr(readers, "IN_MEMORY", 10**9 if in_memory else 0)
  source = pipeline.packed(folders / "examples", length=length, batch=7)
  got = [e for batch in source.once() for e in _unpack(batch)]
  want = {tuple(e["ids"]): e for e in _examples()}
  assert len(want) == 300  # Distinct, so they can be told apart.
  assert collections.Counter(tuple(e[0].tolist()) for e in got) == (
      collections.Counter(want.keys()))
  for tokens, targets, weights, values, value_weights in got:
    example = want[tuple(tokens.tolist())]
    np.testing.assert_array_equal(targets, [*example["ids"][1:], 0])
    np.testing.assert_array_equal(weights, [*example["weights"][1:], 0])
    np.testing.assert_allclose(values, example["values"], rtol=1e-6)
    np.testing.assert_array_equal(value_weights, example["value_weights"])
  if length == 500:
    tokens = sum(len(e["ids"]) for e in _examples())
    assert tokens / (source.parts[0].num_rows * length) > 0.9


def test_id_zero_is_a_token_and_padding_is_segment_zero(folders):
  source = pipeline.packed(folders / "examples", length=64, batch=8)
  tokens, segments = zip(*[(b.tokens_BT, b.segments_BT)
                           for b in source.once()], strict=True)
  real = np.concatenate(tokens)[np.concatenate(segments) > 0]
  assert (real == 0).sum() == sum(e["ids"].count(0) for e in _examples()) >= 300


def test_plans_are_stored_and_torn_ones_are_made_again(folders, tmp_path):
  shutil.copytree(folders / "examples", tmp_path / "e")
  first = pipeline.packed(tmp_path / "e", length=48, batch=8, seed=3)
  path = tmp_path / "e" / "plan-48-error.npz"
  whole = path.read_bytes()
  for damaged in (whole[: len(whole) // 2], b"", b"nonsense"):
    path.write_bytes(damaged)
    _same(pipeline.packed(tmp_path / "e", length=48, batch=8, seed=3)(),
          first.batch_at(0))
  plan = packing.best_fit([3, 3, 3, 3], 6)  # The stored plan is what is used.
  np.savez(path, row_splits=plan.row_splits, examples=plan.examples,
           digest=store.open_folder(tmp_path / "e", "examples").digest,
           length=48)
  planned = pipeline.packed(tmp_path / "e", length=48, batch=8)
  assert planned.parts[0].num_rows == 2


def test_long_examples_are_refused_dropped_or_cut(folders):
  kept = [e["ids"] for e in _examples() if len(e["ids"]) <= 20]
  with pytest.raises(UserError, match=f"{300 - len(kept)} of 300.*drop"):
    pipeline.packed(folders / "examples", length=20, batch=4)
  got = {}
  for how in ("drop", "truncate"):
    source = pipeline.packed(folders / "examples", length=20, batch=4,
                             too_long=how)
    got[how] = sorted(e[0].tolist() for b in source.once() for e in _unpack(b))
  assert got["drop"] == sorted(kept)
  assert got["truncate"] == sorted(e["ids"][:20] for e in _examples())


def test_mixture_rates_are_counted_in_tokens(folders):
  options = dict(length=38, batch=16, seed=0)
  parts = [pipeline.windows(folders / "text", **options),
           pipeline.packed(folders / "sparse", **options),
           pipeline.windows(folders / "more", **options)]
  source = pipeline.mix(parts, [0.5, 0.3, 0.2])
  tokens = np.zeros(3)
  for _ in range(300):
    batch = source()
    examples = batch.extra["value_weights_BT"].any(1)
    more = ~examples & np.isin(batch.tokens_BT, [10, 11, 12, 13]).any(1)
    real = (batch.segments_BT > 0).sum(1)
    for i, rows in enumerate((~examples & ~more, examples, more)):
      tokens[i] += real[rows].sum()
  np.testing.assert_allclose(tokens / tokens.sum(), [0.5, 0.3, 0.2], atol=0.005)
  assert abs(tokens.sum() / 300 / source.tokens_per_step - 1) < 0.01


def test_interleaving_keeps_shares_and_orders_in_any_run():
  shares = [0.5, 0.25, 0.125, 0.125]
  part, key = pipeline.interleave(np.arange(4096), shares)
  for i, share in enumerate(shares):
    np.testing.assert_array_equal(key[part == i], np.arange(4096 * share))
    running = np.cumsum(part == i) - share * np.arange(1, 4097)
    assert abs(running).max() <= 3
  far = np.arange(10**12, 10**12 + 64)  # Works far out, without counting up.
  part, key = pipeline.interleave(far, [0.3, 0.7])
  assert (np.diff(key[part == 1]) == 1).all() and 44 <= (part == 1).sum() <= 46


def test_bad_arguments_are_user_errors(folders):
  text = folders / "text"
  with pytest.raises(UserError, match="3 hosts"):
    pipeline.windows(text, length=32, batch=8, process_count=3)
  with pytest.raises(UserError, match="holds tokens, not examples"):
    pipeline.packed(text, length=32, batch=8)
  with pytest.raises(UserError, match="vocabulary"):
    pipeline.windows(text, length=32, batch=8, vocab_hash="0" * 16)
  one = pipeline.windows(text, length=32, batch=8)
  with pytest.raises(UserError, match="length"):
    pipeline.mix([one, pipeline.windows(text, length=16, batch=8)], [1, 1])
  with pytest.raises(UserError, match="rates"):
    pipeline.mix([one, one], [1, 0])
