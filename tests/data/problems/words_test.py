"""Word problems: what texts mean, what wins, and what is written of them."""

import functools
import itertools
import re

import numpy as np
import pytest

from lm.data.problems import stories, task, words
from lm.data.vocab import ByteVocab
from lm.types import UserError

TASK = words.TASK
EXAMPLE = words.Words(
    "Ann has 3 apples. Cid has twice as many as Ben. Eva has 4 more than Ann."
    " Ben has 7 more apples than Ann. How many apples does Cid have?")


@functools.cache
def drawn(steps=3, distractors=2, split="train", count=200):
  return TASK.with_dials(steps=steps, distractors=distractors).problems(
      split, count)


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("sentence, value", [
    ("Ben has 2 more pens than Ann.", 8),
    ("Ben has 2 more than Ann.", 8),
    ("Ann has 2 fewer pens than Ben.", 8),
    ("Ben has 2 fewer pens than Ann.", 4),
    ("Ben has 2 fewer than Ann.", 4),
    ("Ann has 2 more pens than Ben.", 4),
    ("Ben has twice as many pens as Ann.", 12),
    ("Ben has twice as many as Ann.", 12),
    ("Ann has half as many pens as Ben.", 12),
    ("Ben has 3 times as many pens as Ann.", 18),
    ("Ben has 3 times as many as Ann.", 18),
    ("Ben has half as many pens as Ann.", 3),
    ("Ben has half as many as Ann.", 3),
    ("Ann has twice as many pens as Ben.", 3),
    ("Ben has as many pens as Ann and Cid together.", 11),
    ("Ben has as many as Cid and Ann together.", 11),
    ("Ann and Cid together have as many pens as Ben.", 11),
])
def test_each_sentence_means_what_it_says(sentence, value):
  problem = words.Words(f"{sentence} Cid owns 5 pens. Ann starts with 6 pens."
                        " How many pens does Ben have?")
  lines = task.solution(problem, rng())
  assert lines[-1] == f"Answer: {value}"
  assert problem.grade(str(value)) and not problem.grade(str(value + 1))


def test_the_example_of_the_module():
  assert task.solution(EXAMPLE, rng()) == [
      "Ben: 3 + 7 = 10\n", "Cid: 10 * 2 = 20 (also: Ben 10)\n", "Answer: 20"]
  assert EXAMPLE.options(()) == (
      ("Eva: 3 + 4 = 7\n", (("Eva", 7),)), ("Ben: 3 + 7 = 10\n", (("Ben", 10),)
      )) and not EXAMPLE.winnable((("Eva", 7),))


@pytest.mark.parametrize("steps, distractors", [(1, 0), (3, 2), (5, 8)])
def test_solutions_are_right_and_judged_so(steps, distractors):
  generator = rng(1)
  for problem in drawn(steps, distractors):
    lines = task.solution(problem, generator)
    assert len(lines) == steps + 1 and problem.num_thoughts == steps
    assert task.outcome(problem, lines) == 1.0
    assert task.judge(problem, lines) == ([1.0] * len(lines),) * 2


def reaches(problem, state):
  """Whether any way of playing on ends in an answer that is graded right."""
  options = problem.options(state)
  if not options:
    value = dict(state).get(problem.story.target)
    return not problem.remaining(state) and problem.grade(str(value))
  return any(reaches(problem, after) for _, after in options)


def test_winnable_is_what_playing_on_reaches():
  seen = set()
  for problem in drawn()[:60]:
    states = {problem.start()}
    while states:
      for state in states:
        assert problem.winnable(state) == reaches(problem, state)
        seen.add((len(state), problem.winnable(state)))
      states = {a for s in states for _, a in problem.options(s)}
  assert seen == {(0, True), *itertools.product((1, 2, 3), (True, False))}


@pytest.mark.parametrize("claimed, wins", [
    ((("Ben", 10),), True), ((("Ben", 11),), False), ((("Cid", 20),), True),
    ((("Ben", 10), ("Cid", 21)), False), ((("Ben", 10), ("Eva", 7)), False),
    ((("Ben", 10), ("Cid", 20), ("Eva", 7)), False)])
def test_claimed_states(claimed, wins):
  assert EXAMPLE.winnable(claimed) == wins


def test_distractors_make_blind_play_lose():
  won = [np.mean([task.outcome(p, task.play(p, rng(i)))
                  for i, p in enumerate(drawn(3, d))]) for d in (0, 2)]
  assert won[0] == 1.0 and 0.1 < won[1] < 0.7


def test_what_is_written_is_read():
  generator = rng(2)
  for problem in drawn(5, 8, count=50):
    state = problem.start()
    while options := problem.options(state):
      for line, after in options:
        assert problem.read(line) == after
      state = options[generator.integers(len(options))][1]
    assert not problem.remaining(state)


@pytest.mark.parametrize("line", [
    "", "Ben: 3 + 7", "Ben 3 + 7 = 10", "Ben: 3 + 7 = 100", "Answer: 10",
    "Ben: 3 + 7 = 10 (also: )", "Ben: 3 + 7 = 10 (also: Ben 10)",
    "Ben: 3 + 7 = 10 (also: Ann 3 Ann 4)", "Wait", "Back to: Ben 10"])
def test_unreadable_lines(line):
  assert EXAMPLE.read(line) is None


@pytest.mark.parametrize("answer", [
    None, "", "21", "020", "+20", " 20", "20 apples", "\u0662\u0660"])
def test_wrong_answers(answer):
  assert not EXAMPLE.grade(answer) and EXAMPLE.grade("20")


def test_answers_copy_the_thoughts():
  assert EXAMPLE.answer(["Cid: 9 * 2 = 18\n", "Eva: 3 + 4 = 7 (also: Cid 18)\n"]
                        ) == "Answer: 18"
  assert EXAMPLE.answer(["Eva: 3 + 4 = 7\n"]) == "Answer: 7"
  assert EXAMPLE.read_answer(EXAMPLE.answer([])) == "0"


def test_faults_are_faults_and_some_tempt():
  generator, kinds = rng(3), set()
  for problem in drawn(3, 2):
    state, lines = problem.start(), []
    while options := problem.options(state):
      line, after = options[generator.integers(len(options))]
      wrong, claimed = problem.fault(state, line, generator)
      assert wrong not in {o[0] for o in options}
      assert problem.read(wrong) == claimed and len(claimed) == len(after)
      labels, imitate = task.judge(problem, [*lines, wrong])
      assert labels[-1] == imitate[-1] == 0.0
      kinds.add((len(state), problem.winnable(claimed)))
      state = after
      lines.append(line)
    right = problem.answer(task.solution(problem, generator))
    wrong, _ = problem.fault(state, right, generator)
    assert problem.read_answer(wrong) and not task.outcome(problem, [wrong])
  assert kinds == set(itertools.product((0, 1, 2), (True, False)))


def test_a_policy_may_claim_anything():
  """Attempts go on from faulty states; nothing there raises."""
  generator = rng(4)
  for problem in drawn(5, 8, count=100):
    lines = task.attempt(problem, generator, good=0.5, slip=0.8)
    labels, _ = task.judge(problem, lines)
    assert len(labels) == len(lines)
    assert sorted(labels, reverse=True) == labels


def test_pieces():
  vocab = ByteVocab(TASK.symbols)
  length = lambda text: len(vocab.encode(text))
  generator = rng(5)
  thoughts = [line for p in drawn(5, 8) for line in task.play(p, generator)]
  assert max(map(length, thoughts)) == 16
  assert np.mean([length(p.prompt()) for p in drawn()]) < 60
  assert length("Cid: 10 * 2 = 20 (also: Ben 10)\n") == 10
  for text in (*thoughts, *(p.question(p.start()) for p in drawn())):
    assert vocab.decode(vocab.encode(text)) == text
    letters = [i for i in vocab.encode(text) if chr(i).isalnum() and i < 256]
    assert not letters  # Every word is a piece.


def renamed(problem):
  """The same problem with other names, another thing and another order."""
  swap = dict(zip(stories.NAMES + stories.ITEMS,
                  stories.NAMES[::-1] + stories.ITEMS[::-1]))
  text = re.sub("|".join(swap), lambda m: swap[m[0]], problem.text)
  *said, asked = text.split(". ")
  return words.Words(". ".join([*said[::-1], asked]))


def test_splits_do_not_meet_whatever_the_words():
  found = {}
  for split in TASK.splits:
    problems = drawn(2, 2, split)
    for problem in problems:
      other = renamed(problem)
      assert other.text != problem.text
      assert words.split_of(other.story) == split
    found[split] = {stories.structure(p.story) for p in problems}
  for a, b in itertools.combinations(found.values(), 2):
    assert not a & b
  assert min(map(len, found.values())) > 100


@pytest.mark.parametrize("shuffled", [True, False])
def test_what_is_drawn_is_what_is_read(shuffled):
  generator, told = rng(6), 0
  for _ in range(200):
    story = stories.draw(generator, 4)
    if story is not None:
      stories.distract(story, 5, generator)
      assert stories.read(
          stories.tell(story, generator, shuffled=shuffled)) == story
      told += 1
  assert told > 100


def test_structure_is_the_sum():
  assert stories.structure(EXAMPLE.story) == "((3 + 7) * 2)"


@pytest.mark.parametrize("shuffled", [0, 1])
def test_shuffled(shuffled):
  """Told in order, the one who is asked for comes last."""
  problems = TASK.with_dials(shuffled=shuffled, distractors=0).problems(
      "train", 50)
  last = [p.story.target in p.text.split(". ")[-2] for p in problems]
  assert sum(last) < 45 if shuffled else all(last)


@pytest.mark.parametrize("dials", [
    {"steps": 0}, {"steps": 6}, {"distractors": -1}, {"distractors": 9},
    {"shuffled": 2}, {"step": 3}])
def test_dials_out_of_range(dials):
  with pytest.raises(UserError, match="steps|distractors|shuffled"):
    TASK.with_dials(**dials)


def test_parse():
  row = {"prompt": EXAMPLE.text.replace(". ", ".\n  "), "id": 7}
  for answer in ({}, {"answer": 20}, {"answer": "20"}):
    assert words.parse({**row, **answer}) == EXAMPLE


@pytest.mark.parametrize("row, reason", [
    ({}, '"prompt" must be the text'),
    ({"prompt": 3}, '"prompt" must be the text'),
    ({"prompt": "Ann has 3 pens."}, "must end in a question like"),
    ({"prompt": "Ann haz 3 pens. How many pens does Ann have?"},
     "cannot read the sentence 'Ann haz 3 pens.'"),
    ({"prompt": "Ann has 3 pens. How many eggs does Ann have?"},
     "one thing only may be counted"),
    ({"prompt": "Ann has 3 pens. How many pens does Ann have?"},
     "the number of Ann is given"),
    ({"prompt": "Ann has 3 pens. How many pens does Ben have?"},
     "nothing is said of Ben"),
    ({"prompt": "Ben has 2 more than Cid. How many pens does Ben have?"},
     "nothing follows from the sentence 'Ben has 2 more than Cid.'"),
    ({"prompt": "Ann has 3 pens. Ann has 4 pens. How many pens does Ann have?"},
     "nothing follows from the sentence 'Ann has 4 pens.'"),
    ({"prompt": "Ann has 3 pens. Ben has half as many as Ann. How many pens"
      " does Ben have?"}, "'Ben has half as many as Ann.' leaves the whole"),
    ({"prompt": "Ann has 100 pens. Ben has 1 fewer than Ann. How many pens does"
      " Ben have?"}, "'Ann has 100 pens.' leaves the whole numbers"),
    ({"prompt": EXAMPLE.text, "answer": 21},
     "wrong answer key: it says 21, and 20 is right"),
    ({"prompt": EXAMPLE.text, "answer": ""}, "wrong answer key"),
])
def test_rows_that_are_refused(row, reason):
  with pytest.raises(ValueError, match=reason):
    words.parse(row)
