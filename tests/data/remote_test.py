"""Vocabularies and prepared data in a bucket, and their copies here."""

import dataclasses
import functools
import json
import warnings

import numpy as np
import pytest
from tests import bucket as bucket_lib

from lm import paths
from lm.data import mirror, mixture, pipeline, prepare, store, tasks
from lm.data import vocab as vocab_lib
from lm.types import UserError

VOCAB = vocab_lib.ByteVocab()


@pytest.fixture
def bucket():
  return bucket_lib.Bucket()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The cache of this machine; `elsewhere` is that of another."""
  monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def elsewhere(monkeypatch, tmp_path):
  monkeypatch.setenv("LM_CACHE", str(tmp_path / "other"))


ASKED = []  # How many rows were asked for, each time.


def rows(count):
  ASKED.append(count)
  for i in range(count):
    yield {"messages": [{"role": "user", "content": f"{i} " * (i % 7 + 1)},
                        {"role": "assistant", "content": f"answer {i}"}]}


def task(key="v1", kind="examples"):
  return tasks.generated(
      "talk", VOCAB, rows=functools.partial(rows, 60), key=key,
      kind=kind, num_shards=4)


def batches(source, count=3):
  return [source(None) for _ in range(count)]


def fetched(asked):
  """Objects that were read as a whole or in part, without the manifest."""
  return [path for method, path in asked
          if method == "GET" and "alt=media" in path
          and store.MANIFEST not in path]


def test_a_vocabulary_is_written_and_read(bucket):
  url = bucket.url + "/deep/vocab.model"
  vocab = vocab_lib.ByteVocab(["twenty"])
  vocab.save(url)
  assert vocab_lib.load(url).hash == vocab.hash
  assert bucket.names() == ["deep/vocab.model"]
  vocab_lib.ByteVocab(["other"]).save(url)
  assert vocab_lib.load(url).hash != vocab.hash
  with pytest.raises(UserError, match=f"no vocabulary at {bucket.url}/none"):
    vocab_lib.load(bucket.url + "/none")
  with bucket.refusing(lambda method, path: True):
    with pytest.raises(UserError, match="the bucket refuses"):
      vocab_lib.load(url)


@pytest.mark.parametrize("kind", ["examples", "tokens"])
def test_it_is_what_a_local_folder_would_be(bucket, tmp_path, kind):
  url = bucket.url + "/data"
  lengths = [128] if kind == "examples" else []
  here = prepare.write(task(kind=kind), tmp_path / "here", lengths=lengths)
  there = prepare.write(task(kind=kind), url, lengths=lengths)
  assert dataclasses.asdict(there) | {"folder": 0} == (
      dataclasses.asdict(here) | {"folder": 0})
  files = [f["name"] for f in here.files]
  assert bucket.names() == sorted(
      f"data/{name}" for name in [*files, store.MANIFEST])
  for name in files:
    assert bucket.read(f"data/{name}") == (tmp_path / "here" / name
                                           ).read_bytes()
  assert bucket.in_order()[-1] == f"data/{store.MANIFEST}"
  read = pipeline.packed if kind == "examples" else pipeline.windows
  options = dict(length=128, batch=4, seed=3)
  for a, b in zip(batches(read(tmp_path / "here", **options)),
                  batches(read(url, **options)), strict=True):
    np.testing.assert_array_equal(a.tokens_BT, b.tokens_BT)


def test_another_host_finds_it_done(bucket, tmp_path, monkeypatch):
  url = bucket.url + "/data"
  first = prepare.write(task(), url)
  with bucket.requests() as asked:
    ASKED.clear()
    again = prepare.write(task(), url)
  assert again == first and not fetched(asked)  # It was made here.
  elsewhere(monkeypatch, tmp_path)
  with bucket.requests() as asked:
    found = prepare.write(task(), url)
  assert not ASKED and found == first
  assert len(fetched(asked)) == len(first.files)
  assert found.folder.is_relative_to(tmp_path / "other")
  with bucket.requests() as asked:
    store.open_folder(url, "examples")
  assert not fetched(asked)


def test_only_what_is_missing_or_wrong_here_is_fetched_again(bucket):
  url = bucket.url + "/data"
  made = prepare.write(task(), url)
  right = [path.read_bytes() for path in made.paths]
  made.paths[0].unlink()
  made.paths[1].write_bytes(bucket_lib.truncated(right[1]))
  made.paths[2].write_bytes(bucket_lib.flipped(right[2]))
  with bucket.requests() as asked:
    found = store.open_folder(url, "examples")
  assert found.folder == made.folder and len(fetched(asked)) == 3
  assert [path.read_bytes() for path in found.paths] == right
  assert not list(made.folder.glob("*.tmp"))


@pytest.mark.parametrize("harm, what", [
    (bucket_lib.truncated, "has changed"), (bucket_lib.flipped, "has changed"),
    (bucket_lib.missing, "is missing")])
def test_an_object_that_is_not_what_it_was_is_refused_by_name(
    bucket, tmp_path, monkeypatch, harm, what):
  url = bucket.url + "/data"
  made = prepare.write(task(), url)
  name = f"data/{made.files[2]['name']}"
  elsewhere(monkeypatch, tmp_path)
  with bucket.harmed(name, harm):
    with pytest.raises(UserError, match=f"{bucket.url}/{name} {what}"):
      store.open_folder(url, "examples")
  left = [p.name for p in (tmp_path / "other").rglob("*") if p.is_file()]
  assert made.files[2]["name"] not in left
  assert not [n for n in left if n.endswith(".tmp")]
  assert store.open_folder(url, "examples") == made


def test_other_data_has_another_copy(bucket):
  url = bucket.url + "/data"
  first = prepare.write(task(), url)
  with pytest.raises(UserError, match=f"{url} holds other data"):
    prepare.write(task("v2"), url)
  second = prepare.write(task("v2"), url, overwrite=True)
  assert second.job != first.job and second.folder != first.folder
  assert store.open_folder(url, "examples") == second


def test_unfinished_data_is_finished_and_not_read(bucket):
  url = bucket.url + "/data"
  prepare.write(task(), url)
  bucket.change(f"data/{store.MANIFEST}", None)
  with pytest.raises(UserError, match="run prepare again to finish"):
    store.open_folder(url, "examples")
  prepare.write(task(), url)
  store.open_folder(url, "examples")


def test_what_could_not_be_sent_is_not_made_again(bucket, cache):
  url = bucket.url + "/data"
  with bucket.refusing(bucket_lib.writes):
    with pytest.raises(UserError, match="the bucket refuses.*objectAdmin"):
      prepare.write(task(), url, processes=1)
  assert bucket.names() == []
  ASKED.clear()
  made = prepare.write(task(), url, processes=1)
  assert not ASKED and f"data/{store.MANIFEST}" in bucket.names()
  assert list((cache / "data").iterdir()) == [made.folder]


def test_a_bucket_that_refuses_is_not_damaged_data(bucket):
  url = bucket.url + "/data"
  prepare.write(task(), url)
  before = bucket.names()
  with bucket.refusing(lambda method, path: True):
    for attempt in (lambda: store.open_folder(url, "examples"),
                    lambda: prepare.write(task(), url, overwrite=True)):
      with pytest.raises(paths.StorageError, match="the bucket refuses"):
        attempt()
  assert bucket.names() == before


def test_a_manifest_does_not_choose_where_files_go(bucket, tmp_path):
  url = bucket.url + "/data"
  prepare.write(task(), url)
  fields = json.loads(bucket.read(f"data/{store.MANIFEST}"))
  fields["files"][0]["name"] = "../../../evil"
  paths.write_bytes(f"{url}/{store.MANIFEST}", json.dumps(fields).encode())
  with pytest.raises(UserError, match="is no name of prepared data"):
    store.open_folder(url, "examples")
  assert not list(tmp_path.rglob("evil"))


def test_long_transfers_show_how_far_they_are(bucket, capsys, monkeypatch):
  monkeypatch.setattr(mirror, "_LONG", 1)
  monkeypatch.setenv("FORCE_COLOR", "1")
  prepare.write(task(), bucket.url + "/data")
  out, err = capsys.readouterr()
  assert f"sending {bucket.url}/data" in err and not out


def test_a_mixture_lies_in_a_bucket(bucket, tmp_path):
  specs = {"games": {"kind": "game24", "count": 50}}
  options = dict(form="examples", length=256)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    there = mixture.write(specs, VOCAB, bucket.url + "/mix", **options)
    here = mixture.write(specs, VOCAB, tmp_path / "mix", **options)
  assert str(there["games"]) == f"{bucket.url}/mix/{here['games'].name}"
  a, b = (mixture.sources(found, form="examples", length=256, batch=2)["games"]
          for found in (there, here))
  for x, y in zip(batches(a), batches(b), strict=True):
    np.testing.assert_array_equal(x.tokens_BT, y.tokens_BT)
