"""Countdown: what is held out, and that everything can be solved."""

import collections
import itertools
import operator

import numpy as np
import pytest

from lm.data import problems
from lm.data.problems import countdown, game24, task
from lm.types import UserError

TASK = problems.TASKS["countdown"]


def can_make(numbers, target, largest=999):
  """Integer play by trying everything, the tests' own."""
  if len(numbers) == 1:
    return numbers[0] == target
  for i, j in itertools.permutations(range(len(numbers)), 2):
    rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
    a, b = numbers[i], numbers[j]
    results = {a + b, a * b, a - b, a // b if b and a % b == 0 else -1}
    if any(0 <= r <= largest and can_make([*rest, r], target, largest)
           for r in results):
      return True
  return False


@pytest.mark.parametrize("numbers, count", [(3, 60), (4, 30), (5, 3), (6, 1)])
def test_problems_can_be_solved(numbers, count):
  made = TASK.with_dials(numbers=numbers)
  for split in made.splits:
    for p in made.problems(split, count):
      assert len(p.numbers) == numbers and 10 <= p.target <= 100
      assert all(1 <= n <= 99 for n in p.numbers)
      assert can_make(p.numbers, p.target), p
      lines = task.solution(p, np.random.default_rng(0))
      assert task.outcome(p, lines) == 1.0


def test_what_is_held_out_stays_held_out():
  """Golden: a changed hash would let models see what they are tested on."""
  held_out = [10, 52, 58, 59, 69, 71, 76, 86, 97]
  assert sorted(countdown.held_out_targets()) == held_out
  roles = {}
  for split in TASK.splits:
    found = TASK.problems(split, 150)
    roles[split] = ({p.target in held_out for p in found},
                    {tuple(sorted(p.numbers)) for p in found})
    assert {countdown.split_of(p.numbers, p.target) for p in found} == {split}
  assert {s: r[0] for s, r in roles.items()} == {
      "train": {False}, "validation": {False}, "test": {True},
      "test_targets": {True}, "test_inputs": {False}}
  # Inputs: those of the tests and of validation are never trained on.
  for split in ("validation", "test", "test_inputs"):
    assert not roles[split][1] & roles["train"][1]
    assert {countdown.inputs_split(n) for n in roles[split][1]} == {
        "validation" if split == "validation" else "test"}
  assert {countdown.inputs_split(n) for n in roles["test_targets"][1]} == {
      "train"}
  # In any order.
  assert countdown.inputs_split((62, 3, 25, 14)) == (
      countdown.inputs_split((3, 14, 25, 62)))


def test_shares_of_inputs():
  splits = [countdown.inputs_split((a, b, 50, 60)) for a in range(60)
            for b in range(60) if a <= b]
  assert splits.count("test") / len(splits) == pytest.approx(0.1, abs=0.02)
  assert splits.count("validation") / len(splits) == pytest.approx(
      0.04, abs=0.015)


def test_targets_are_even():
  targets = [TASK.draw(r).target for r in (
      np.random.default_rng(i) for i in range(600))]
  assert min(targets) < 15 and max(targets) > 95
  assert 49 < sum(targets) / len(targets) < 61
  assert len(set(targets)) > 75


def test_overlap_counts_the_smaller_problems_of_training():
  found = TASK.problems("test_inputs", 15)
  met, every = 0, set()
  for p in found:
    for i, j in itertools.permutations(range(4), 2):
      rest = [n for k, n in enumerate(p.numbers) if k not in (i, j)]
      a, b = p.numbers[i], p.numbers[j]
      for r in (a + b, a * b, a - b, a // b if a % b == 0 else -1):
        state = tuple(sorted([*rest, r]))
        if (0 <= r <= 999 and can_make(state, p.target)
            and (state, p.target) not in every):
          every.add((state, p.target))
          met += (0 < state[0] and state[2] <= 99
                  and countdown.inputs_split(state) == "train")
  assert TASK.overlap(found) == {3: met / len(every)} and 0.5 < met / len(every)
  # With a target that training never has, nothing was met.
  assert TASK.overlap(TASK.problems("test", 10)) == {3: 0.0}


def test_rows_of_a_user():
  p = TASK.parse({"numbers": [62, 3, 14, 25], "target": 57})
  assert p.prompt() == "Make 57 from 3 14 25 62"
  for row, words in (
      ({"numbers": [1], "target": 5}, "must be 2 to 6 whole numbers"),
      ({"numbers": [1, 1000], "target": 5}, "from 1 to 999"),
      ({"numbers": [1, 2]}, '"target" must be'),
      ({"numbers": [1, 2], "target": "3"}, '"target" must be'),
      ({"numbers": [1, 2], "target": 0}, "from 1 to 999")):
    with pytest.raises(ValueError, match=words):
      TASK.parse(row)


def test_dials_that_leave_nothing_are_a_fault_of_the_user(monkeypatch):
  monkeypatch.setattr(countdown, "_TRIES", 20)
  monkeypatch.setattr(countdown, "inputs_split", lambda numbers: "train")
  with pytest.raises(UserError, match="no problem of split 'test_inputs'"):
    TASK.draw(np.random.default_rng(0), "test_inputs")


def test_facts_are_right_and_cover_what_problems_need():
  ops = collections.Counter()
  for row in countdown.facts(0, 200):
    assert row["labels"] == [None] * 16
    for line, given in zip(row["lines"], row["given"], strict=True):
      assert line.startswith(given) and given.endswith(" =")
      a, op, b, equals, result = line.split()
      want = {"+": operator.add, "-": operator.sub, "*": operator.mul,
              "/": operator.truediv}[op](int(a), int(b))
      assert equals == "=" and want == int(result) <= countdown.LARGEST
      ops[op] += 1
  assert min(ops.values()) > 200 and len(ops) == 4
  rows = [list(problems.rows(s, 3, task="countdown", what="facts"))
          for s in (0, 0, 1)]
  assert rows[0] == rows[1] != rows[2]
  with pytest.raises(UserError, match="no facts"):
    problems.rows(0, 3, task="words", what="facts")


def test_the_test_games_of_24_are_no_training_inputs():
  for puzzle in game24.test_puzzles():
    assert countdown.inputs_split(puzzle[::-1]) == "test"
  easy = problems.make_task("countdown", highest=13)
  drawn = easy.problems("train", 400, 3)
  games = {tuple(sorted(p)) for p in game24.test_puzzles()}
  assert not games & {p.numbers for p in drawn}
