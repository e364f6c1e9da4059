"""Play and grading for any target, against brute force of the tests' own."""

import functools
import itertools
import re

import numpy as np
import pytest

from lm.data.problems import arithmetic
from lm.data.problems.countdown import Countdown
from lm.data.problems.game24 import Game24


@functools.cache
def made(state, largest):
  """All numbers that integer play makes of `state`, by trying everything."""
  if len(state) == 1:
    return frozenset(state)
  found = set()
  for i, j in itertools.permutations(range(len(state)), 2):
    rest = [n for k, n in enumerate(state) if k not in (i, j)]
    a, b = state[i], state[j]
    results = [a + b, a * b] + [a - b] * (a >= b)
    if b and a // b * b == a:
      results.append(a // b)
    for r in results:
      if largest is None or r <= largest:
        found |= made(tuple(sorted((*rest, r))), largest)
  return frozenset(found)


@pytest.mark.parametrize("size, count", [(1, 30), (2, 300), (3, 80), (4, 8)])
def test_winnable_is_what_brute_force_finds(size, count):
  rng = np.random.default_rng(size)
  agreed = {True: 0, False: 0}
  for i in range(count):
    # Small numbers too: zeros, ones and equal numbers are the special cases.
    high = (4, 13, 100)[i % 3]
    state = tuple(sorted(rng.integers(0, high, size=size).tolist()))
    for largest in (None, 120):
      for target in range(1, 121):
        want = target in made(state, largest)
        assert arithmetic.winnable(state, target, largest) == want, (
            state, target, largest)
        agreed[want] += 1
  assert min(agreed.values()) > 10, agreed


def test_nobody_plays_a_result_above_the_largest():
  state = (3, 14, 25, 62)
  every, some = arithmetic.moves(state), arithmetic.moves(state, 100)
  assert [m for m in every if m.result <= 100] == list(some)
  assert len(some) < len(every)
  # 25 * 62 = 1550 is the only way to 1535.
  assert arithmetic.winnable((15, 25, 62), 1535)
  assert not arithmetic.winnable((15, 25, 62), 1535, 999)


PROBLEM = Countdown((3, 14, 25, 62), 57)


def test_faults_are_faulty_and_keep_the_count_of_numbers():
  rng = np.random.default_rng(0)
  state = PROBLEM.start()
  options = dict(PROBLEM.options(state))
  kinds = {"number from nowhere": 0, "wrong result": 0, "wrong rest": 0}
  for _ in range(600):
    line = list(options)[rng.integers(len(options))]
    faulty, after = PROBLEM.fault(state, line, rng)
    assert PROBLEM.read(faulty) == after and len(after) == 3
    assert after == tuple(sorted(after)) and max(after) <= 999
    assert PROBLEM.options(after)
    if faulty in options:  # By chance.
      continue
    move = arithmetic.read_move(faulty)
    right = {"+": move.a + move.b, "-": move.a - move.b, "*": move.a * move.b,
             "/": move.a // max(move.b, 1)}[move.op]
    if move.result != right:
      kinds["wrong result"] += 1
    elif move.a not in state or move.b not in state or move.a == move.b:
      kinds["number from nowhere"] += 1
    else:
      kinds["wrong rest"] += 1
  assert min(kinds.values()) > 60, kinds


def test_an_answer_is_copied_wrongly_in_one_number():
  rng = np.random.default_rng(0)
  answer = "Answer: (62 - 25) + (14 + 3) = 57"
  changed = 0
  for _ in range(50):
    faulty, state = PROBLEM.fault((54,), answer, rng)
    assert state == (54,) and faulty.endswith(" = 57")
    differ = [a != b for a, b in zip(
        re.findall(r"\d+", answer),
        re.findall(r"\d+", faulty), strict=True)]
    assert sum(differ) <= 1
    changed += sum(differ)
  assert changed > 40
  with pytest.raises(ValueError, match="neither a thought nor an answer"):
    PROBLEM.fault((54,), "hm\n", rng)


def test_the_answer_copies_the_thoughts_right_or_wrong():
  lines = ["62 - 25 = 37 (left: 3 14 37)\n", "37 + 14 = 51 (left: 3 51)\n",
           "51 * 3 = 153 (left: 153)\n"]
  answer = PROBLEM.answer(lines)
  assert answer == "Answer: ((62 - 25) + 14) * 3 = 57"
  assert not PROBLEM.grade(PROBLEM.read_answer(answer))
  # What a faulty line took from nowhere stands there as it is.
  lines[1] = "37 + 20 = 57 (left: 3 57)\n"
  assert PROBLEM.answer(lines[:2]) == "Answer: (62 - 25) + 20 = 57"


def test_each_target_is_graded_for_itself():
  written = "25 + 62 / (3 - 1)"
  assert Countdown((1, 3, 25, 62), 56).grade(written)
  assert not Countdown((1, 3, 25, 62), 57).grade(written)
  assert not Countdown((1, 3, 25, 61), 56).grade(written)
  assert PROBLEM.read_answer(f"x\nAnswer: {written} = 57\n") == written
  assert PROBLEM.read_answer(f"Answer: {written} = 56") is None


def test_prompts_and_questions():
  assert Countdown((62, 3, 25, 14), 57).prompt() == "Make 57 from 3 14 25 62"
  assert Game24((4, 4, 10)).question((4, 4, 10)) == (
      "Can 24 be made from 4 4 10?")
  assert PROBLEM.num_thoughts == PROBLEM.remaining(PROBLEM.start()) == 3


def test_a_claim_of_more_numbers_than_there_were_is_lost():
  assert not PROBLEM.winnable(tuple(range(1, 40)))  # And costs nothing.
  assert PROBLEM.winnable((57,)) and PROBLEM.winnable((62, 5))
