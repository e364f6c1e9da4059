"""Mixtures by name: splits that do not meet, folders that are found again."""

import json

from lm.data import mixture, store, vocab as vocab_lib
from lm.data import problems
from lm.data.problems import game24
from lm.types import UserError
import numpy as np
import pytest

BYTES = vocab_lib.ByteVocab()
GAMES = {"kind": "game24", "count": 300}
CHATS = [{"messages": [{"role": "user", "content": f"question {i % 50}"},
                       {"role": "assistant", "content": f"answer {i}"}]}
         for i in range(200)]


def questions(name, spec, split):
  task = mixture.make_task(name, spec, BYTES, form="examples", split=split)
  return [mixture.question(row) for shard in task.shards
          for _, row in shard()]


@pytest.fixture
def chats(tmp_path):
  path = tmp_path / "chats.jsonl"
  path.write_text("".join(json.dumps(c) + "\n" for c in CHATS))
  return str(path)


def test_held_out_questions_are_never_trained_on(chats):
  held_out_games = set()
  for spec in (GAMES, {"kind": "game24_value", "count": 300},
               {**GAMES, "seed": 5}):
    spec = {**spec, "holdout": 0.3}
    train, held_out = (set(questions("x", spec, s))
                       for s in ("train", "validation"))
    assert len(train) > 80 and len(held_out) > 30
    assert not train & held_out
    # Held out from one stage is held out from the others.
    assert not train & held_out_games
    held_out_games |= held_out
  every = {game24.prompt(p) for p in game24.test_puzzles()}
  assert not (held_out_games | train) & every
  spec = {"kind": "dialogues", "path": chats, "holdout": 0.4}
  train, held_out = (questions("x", spec, s) for s in ("train", "validation"))
  assert len(train) + len(held_out) == len(CHATS) and train and held_out
  assert not set(train) & set(held_out)


def test_games_differ_between_shards_seeds_and_splits(monkeypatch):
  monkeypatch.setattr(mixture, "_SHARD_ROWS", 100)
  def shards(**more):
    task = mixture.make_task("x", {**GAMES, **more}, BYTES, form="examples")
    return [[mixture.question(row) for _, row in s()] for s in task.shards]
  first, other = shards(), shards(seed=1)
  assert len(first) == 3 and first == shards()
  assert first[0] != first[1] != first[2]
  assert first != other


def test_a_problem_is_held_out_whatever_is_asked_about_it():
  for name in problems.TASKS:
    spec = {"kind": "problems", "task": name, "count": 60, "holdout": 0.3}
    train, held_out = set(), set()
    for what in ("solutions", "formats", "streams", "revisions", "verdicts",
                 "values"):
      for split, found in (("train", train), ("validation", held_out)):
        mine = questions("x", {**spec, "what": what}, split)
        assert mine
        found.update(mine)
    assert not train & held_out
    assert len(train) > 100 and len(held_out) > 50
  # The prefixes of searches and revisions are no part of what is held out.
  assert not any(q.startswith(("Search", "Revise")) for q in train | held_out)


def test_dials_and_options_reach_the_problems():
  spec = {"kind": "problems", "task": "countdown", "count": 40,
          "dials": {"numbers": 3, "highest": 20}}
  for prompt in questions("x", spec, "train"):
    numbers = [int(n) for n in prompt.partition("from ")[2].split()]
    assert len(numbers) == 3 and max(numbers) <= 20
  def rows(**more):
    task = mixture.make_task("x", {**spec, "what": "values", **more}, BYTES,
                             form="examples")
    return task.key, [row for shard in task.shards for _, row in shard()]
  key, solved = rows(solved=1.0)
  assert all(set(row["labels"]) == {1.0} for row in solved)
  other, attempts = rows(solved=0.0, first=1.0)
  assert all(len(row["lines"]) == 1 for row in attempts)
  # Prepared folders are found by the key: it knows all that was asked for.
  assert len({key, other, rows()[0], rows(dials={})[0],
              rows(what="solutions")[0]}) == 5 and key == rows(solved=1.0)[0]


def test_problems_as_text():
  spec = {"kind": "problems", "task": "countdown", "what": "streams"}
  task = mixture.make_task("x", {**spec, "count": 20}, BYTES, form="tokens")
  text = BYTES.decode(next(task.examples())["tokens"])
  assert text.startswith("Search: Make ") and "\nAnswer: " in text
  assert len(list(mixture.texts({"x": spec}, games_drawn=30))) <= 30


def test_held_out_rows_are_distinct():
  rows = mixture.held_out("x", {**GAMES, "holdout": 0.2}, BYTES, count=20)
  assert len({mixture.question(r) for r in rows}) == len(rows) == 20
  few = mixture.held_out("x", {**GAMES, "holdout": 0.0}, BYTES, count=20)
  assert few == []


def test_transcripts_are_plain_text():
  task = mixture.make_task("x", GAMES, BYTES, form="tokens")
  text = BYTES.decode(next(task.examples())["tokens"])
  assert text.startswith("Make 24 from ") and text.endswith("<|end|>")
  assert text.count("<|") == 1 and "\nAnswer: " in text


def test_parts_are_prepared_once_and_mixed_by_rate(tmp_path, chats):
  specs = {"games": {**GAMES, "rate": 0.75},
           "chats": {"kind": "dialogues", "path": chats, "rate": 0.25,
                     "holdout": 0.0},
           "off": {"kind": "text", "path": "nowhere", "rate": 0.0}}
  def write():
    return mixture.write(specs, BYTES, tmp_path, form="examples", length=256)
  folders = write()
  assert sorted(folders) == ["chats", "games"]
  times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record")}
  assert write() == folders and times == {
      p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record")}
  # Another description gets another folder, and does not disturb this one.
  specs["games"]["count"] = 100
  again = write()
  assert again["games"] != folders["games"]
  assert again["chats"] == folders["chats"] and folders["games"].exists()

  parts = mixture.sources(folders, form="examples", length=256, batch=16)
  source = mixture.mixed(specs, parts)
  marker = BYTES.encode("Make 24")
  tokens = {"games": 0, "chats": 0}
  for _ in range(20):
    batch = source()
    for row, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
      name = "games" if bytes(marker) in bytes(
          row.clip(0, 255).astype(np.uint8)) else "chats"
      tokens[name] += int((segments > 0).sum())
  assert tokens["games"] / sum(tokens.values()) == pytest.approx(.75, abs=.03)


def test_a_part_that_holds_nothing_out_is_not_evaluated(tmp_path, chats):
  specs = {"games": GAMES, "chats": {"kind": "dialogues", "path": chats,
                                     "holdout": 0.0}}
  def write():
    return sorted(mixture.write(specs, BYTES, tmp_path, form="examples",
                                split="validation", length=256))
  assert write() == ["games"]
  del specs["games"]
  with pytest.raises(UserError, match="holdout"):
    write()


def test_once_sees_every_row_or_an_even_choice(tmp_path):
  folders = mixture.write({"games": GAMES}, BYTES, tmp_path, form="tokens",
                          length=64)
  parts = mixture.sources(folders, form="tokens", length=64, batch=8)
  every = mixture.once(parts.values())
  counted = store.open_folder(folders["games"], "tokens").counts["tokens"]
  assert sum((b.segments_BT > 0).sum() for b in every) == counted
  some = mixture.once(parts.values(), batches=3)
  assert len(some) == 3
  assert len({b.tokens_BT.tobytes() for b in some}) == 3


def test_a_share_of_the_documents(tmp_path):
  for i in range(100):
    (tmp_path / f"{i}.txt").write_text(f"document {i}")
  def names(**more):
    task = mixture.make_task(
        "x", {"kind": "text", "path": str(tmp_path), "holdout": 0.2, **more},
        BYTES, form="tokens")
    return {where for s in task.shards for where, _ in s()}
  every, some = names(), names(share=0.3)
  assert some < every and 10 < len(some) < 40


def test_what_is_not_installed_is_optional_only_if_it_says_so(monkeypatch):
  monkeypatch.setattr(
      mixture.dialogues, "installed_chatterbot", lambda: None)
  spec = {"kind": "chatterbot", "optional": True}
  assert mixture.make_task("talk", spec, BYTES, form="examples") is None
  task = mixture.make_task(
      "talk", {"kind": "chatterbot"}, BYTES, form="examples")
  with pytest.raises(UserError, match="pip install"):
    next(task.examples())


@pytest.mark.parametrize("spec, form, words", [
    ({"kind": "game25"}, "tokens", "did you mean 'game24'"),
    ({}, "tokens", "data.sources.part.kind"),
    ({"kind": "game24", "cuont": 3}, "tokens", "did you mean 'count'"),
    ({"kind": "game24", "count": 0}, "tokens", "at least 1"),
    ({"kind": "dialogues"}, "examples", "path"),
    ({"kind": "text"}, "examples", "pre-training only"),
    ({"kind": "game24_value"}, "tokens", "not to"),
    ({"kind": "problems"}, "tokens", "task"),
    ({"kind": "problems", "task": "game42"}, "tokens", "mean 'game24'"),
    ({"kind": "problems", "task": "game24", "what": "stream"}, "tokens",
     "part.what is 'stream': did you mean 'streams'"),
    ({"kind": "problems", "task": "game24", "what": "values"}, "tokens",
     "not to"),
    ({"kind": "problems", "task": "game24", "sound": 0.5}, "tokens",
     "sound belong to what='values'"),
    ({"kind": "problems", "task": "countdown", "dials": {"numbers": 9}},
     "tokens", "from 3 to 6"),
])
def test_bad_descriptions(spec, form, words):
  with pytest.raises(UserError, match=words):
    mixture.make_task("part", spec, BYTES, form=form)
