"""Game of 24 as one task among others, and its published draws."""

import hashlib
import json

import pytest

from lm.data import corpus
from lm.data import problems
from lm.data.problems import arithmetic, game24

TEST = {tuple(sorted(p)) for p in game24.test_puzzles()}


def test_draws_are_those_of_the_published_runs():
  """Golden: sha256 of 300 rows of each stream, as configs and results have it.

  If this fails, every result under the Game of 24 is of other data: mend the
  draw rather than this number.
  """
  def digest(rows):
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
  assert digest(game24.dialogues(0, 300)) == (
      "d330167ecc4d5ce6bcd2094aa55ce6e550c90642fb8bd44cfe1d3dd990e88255")
  assert digest(game24.value_examples(0, 300)) == (
      "978e0b59fd87df7268535a6a86cd16d4944fdebd706f1b57238964a7eafc76ab")


def test_splits_of_the_task_do_not_meet_and_respect_the_mixtures():
  splits = {s: {tuple(sorted(p.numbers)) for p in game24.TASK.problems(s, n)}
            for s, n in (("train", 600), ("validation", 20), ("test", 100))}
  assert splits["test"] == TEST
  assert not splits["train"] & (splits["validation"] | TEST)
  assert not splits["validation"] & TEST
  # A mixture that holds out 4 % never trains on a validation puzzle.
  assert all(corpus.split_of(game24.prompt(p), 0.04) == "validation"
             for p in splits["validation"])
  assert game24.TASK.overlap(game24.TASK.problems("test", 100)) == (
      game24.overlap())


def test_rows_of_a_user():
  assert game24.parse({"numbers": "13 4 10 9"}).prompt() == (
      "Make 24 from 4 9 10 13")
  for numbers in ([1, 2, 3], [1, 2, 3, 0], "a b c d", None, [1, 2, 3, 4.5]):
    with pytest.raises(ValueError, match="must be 4 whole numbers from 1"):
      game24.parse({"numbers": numbers})


def test_a_bound_leaves_games_that_can_be_won_within_it():
  easy = problems.make_task("game24", largest=40)
  games = easy.problems("train", 900)
  assert all(g.largest == 40 and g.winnable(g.start()) for g in games)
  everywhere = problems.make_task("game24").problems("train", 900)
  assert not all(arithmetic.winnable(g.numbers, 24, 40) for g in everywhere)
  for row in problems.rows(0, 100, task="game24", what="values",
                           dials=[("largest", 40)]):
    assert all(max(game24.read(line) or (0,)) <= 40 for line, kept in zip(
        row["lines"], row["imitate"], strict=True) if kept)
  assert all(left[-1] <= 40 for g in games for _, left in g.options(g.start()))
