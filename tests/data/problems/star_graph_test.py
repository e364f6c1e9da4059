"""Star graphs: paths, dead ends, faults, splits and users' rows."""

import functools
import itertools

import numpy as np
import pytest

from lm.data.problems import star_graph, task
from lm.data.vocab import ByteVocab
from lm.types import UserError

TASK = star_graph.TASK
# 12 leads to 3, 5 and 8; 3 to 47 and 9; 5 to 6, and so on.
TREE = star_graph.StarGraph(12, 47, (
    (3, 47), (12, 3), (5, 6), (12, 5), (3, 9), (6, 7), (12, 8), (70, 71)))


@functools.cache
def drawn(arms=5, length=5, split="train", count=200):
  return TASK.with_dials(arms=arms, length=length).problems(split, count)


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("arms, length", [(2, 2), (5, 5), (11, 9)])
def test_graphs_are_stars(arms, length):
  for problem in drawn(arms, length, count=50):
    froms, ends = zip(*problem.edges)
    assert len(set(ends)) == len(ends) == arms * length
    assert froms.count(problem.centre) == arms
    assert problem.centre not in ends
    assert {froms.count(n) for n in set(ends)} == {0, 1}
    assert {*froms, *ends} <= set(range(100))
    assert sum(n not in froms for n in ends) == arms  # The arms' ends.
    assert problem.goal not in froms and problem.num_thoughts == length


@pytest.mark.parametrize("arms, length", [(2, 2), (5, 5), (11, 9)])
def test_solutions_are_right_and_judged_so(arms, length):
  generator = rng(1)
  for problem in drawn(arms, length):
    lines = task.solution(problem, generator)
    assert len(lines) == length + 1
    assert task.outcome(problem, lines) == 1.0
    assert task.judge(problem, lines) == ([1.0] * len(lines),) * 2


def test_only_the_first_step_is_a_choice():
  """The pitfall: later steps follow from the text, the first by search only."""
  won = 0
  for i, problem in enumerate(drawn()):
    state, choices = problem.start(), []
    for line in task.play(problem, rng(i))[:-1]:
      choices.append(len(problem.options(state)))
      state = problem.read(line)
    assert choices == [5, 1, 1, 1, 1]
    won += problem.winnable(state)
    first = [problem.winnable(s) for _, s in
             problem.options(problem.start())]
    assert sum(first) == 1
  assert 20 < won < 60  # One in five of 200.


def test_dead_ends():
  assert TREE.prompt() == ("Path from 12 to 47: 3>47 12>3 5>6 12>5 3>9 6>7"
                           " 12>8 70>71")
  assert TREE.options(12) == (("3\n", 3), ("5\n", 5), ("8\n", 8))
  assert TREE.options(8) == () and TREE.remaining(8) == 1
  assert TREE.options(6) == ()  # 7 would be a third thought.
  assert [TREE.remaining(n) for n in (12, 3, 47, 7, 70, 99)] == [
      2, 1, 0, 0, 0, 0]
  assert [n for n in range(100) if TREE.winnable(n)] == [3, 12, 47]
  assert TREE.answer(["8\n"]) == "Answer: 12 8"
  labels, imitate = task.judge(TREE, ["8\n", "Answer: 12 8"])
  assert labels == imitate == [0.0, 0.0]


@pytest.mark.parametrize("answer, right", [
    ("12 3 47", True), ("12 47", False), ("3 47", False), ("12 3", False),
    ("12 3 9", False), ("12 5 47", False), ("12 3 47 47", False),
    ("12  3 47", False), ("12 03 47", False), ("12>3>47", False), ("", False),
    ("12 3 47 ", False), (None, False), ("12 8 12 3 47", False)])
def test_grade(answer, right):
  assert TREE.grade(answer) == right


def test_answers_are_read_from_the_last_answer_line():
  assert TREE.read_answer("3\nAnswer: 12 8\nWait\nAnswer: 12 3 47") == "12 3 47"
  assert TREE.read_answer("3\n47\n") is None


@pytest.mark.parametrize("line, node", [
    ("3\n", 3), ("99", 99), ("100\n", None), ("03\n", None), ("12>3\n", None),
    ("Answer: 3", None), ("Back to: 12\n", None), ("\n", None), ("-1", None)])
def test_read(line, node):
  assert TREE.read(line) == node


def test_faults_are_faults_and_some_tempt():
  generator, kinds = rng(2), set()
  for problem in drawn():
    state, lines = problem.start(), []
    while options := problem.options(state):
      line, after = options[generator.integers(len(options))]
      wrong, claimed = problem.fault(state, line, generator)
      assert wrong not in {o[0] for o in options}
      assert problem.read(wrong) == claimed
      labels, imitate = task.judge(problem, [*lines, wrong])
      assert labels[-1] == imitate[-1] == 0.0
      kinds.add((problem.remaining(claimed) == problem.remaining(after),
                 problem.winnable(claimed)))
      state = after
      lines.append(line)
    right = problem.answer(task.solution(problem, generator))
    wrong, _ = problem.fault(state, right, generator)
    assert problem.read_answer(wrong) and not task.outcome(problem, [wrong])
  assert kinds == set(itertools.product((True, False), repeat=2))


def test_a_policy_may_claim_anything():
  generator, stopped = rng(3), 0
  for problem in drawn():
    lines = task.attempt(problem, generator, slip=0.5)
    labels, _ = task.judge(problem, lines)
    assert sorted(labels, reverse=True) == labels
    stopped += len(lines) < problem.num_thoughts
  assert stopped  # At nodes that lead nowhere.


def test_streams_walk_an_arm_and_come_back():
  generator, texts = rng(4), []
  for problem in drawn(count=50):
    lines = task.stream(problem, generator)
    assert task.outcome(problem, lines) == 1.0
    texts.append("".join(lines))
  assert sum("Back to: " in text for text in texts) > 10


def test_questions():
  assert TREE.question(5) == f"{TREE.prompt()}. Does 5 lead to 47?"
  assert TREE.show(5) == "5"


def test_pieces():
  vocab = ByteVocab(TASK.symbols)
  for problem in drawn(count=50):
    *thoughts, answer = task.solution(problem, rng())
    assert {len(vocab.encode(t)) for t in thoughts} == {2}
    assert len(vocab.encode(answer)) == 7
    assert len(vocab.encode(problem.prompt())) == 6 + 3 * 25
  longest = task.solution(drawn(11, 9)[0], rng())
  assert max(len(vocab.encode(line)) for line in longest) <= 16


def test_splits_do_not_meet_whatever_the_order():
  found = {}
  for split in TASK.splits:
    for problem in drawn(split=split):
      backwards = star_graph.StarGraph(problem.centre, problem.goal,
                                       problem.edges[::-1])
      assert star_graph.split_of(backwards) == split
    found[split] = {(p.centre, p.goal, frozenset(p.edges))
                    for p in drawn(split=split)}
    assert len(found[split]) == 200
  for a, b in itertools.combinations(found.values(), 2):
    assert not a & b


@pytest.mark.parametrize("dials", [
    {"arms": 1}, {"arms": 12}, {"length": 1}, {"length": 10}, {"length": 2.5},
    {"arm": 5}])
def test_dials_out_of_range(dials):
  with pytest.raises(UserError, match="arms|length"):
    TASK.with_dials(**dials)


def test_parse():
  for answer in ({}, {"answer": "12 3 47"}):
    assert star_graph.parse({"prompt": TREE.prompt(), **answer}) == TREE
  for problem in drawn(count=50):
    assert star_graph.parse({"prompt": problem.prompt()}) == problem


@pytest.mark.parametrize("row, reason", [
    ({}, '"prompt" must be like .*, not None'),
    ({"prompt": "Path from 1 to 2"}, '"prompt" must be like'),
    ({"prompt": "Path from 1 to 100: 1>100"}, "nodes from 0 to 99"),
    ({"prompt": "Path from 1 to 2: 1>2 3>2"}, "two edges lead to node 2"),
    ({"prompt": "Path from 1 to 2: 1>2 1>2"}, "two edges lead to node 2"),
    ({"prompt": "Path from 1 to 2: 1>2 2>1"}, "an edge leads to node 1, where"),
    ({"prompt": "Path from 1 to 1: 1>2"}, "no path leads from 1 to 1"),
    ({"prompt": "Path from 1 to 4: 1>2 3>4 4>3"}, "no path leads from 1 to 4"),
    ({"prompt": TREE.prompt(), "answer": "12 8"},
     "wrong answer key: it says '12 8', and the path is '12 3 47'"),
    ({"prompt": TREE.prompt(), "answer": 47}, "wrong answer key"),
])
def test_rows_that_are_refused(row, reason):
  with pytest.raises(ValueError, match=reason):
    star_graph.parse(row)
