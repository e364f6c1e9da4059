"""What follows from the contract of a problem, for every family there is."""

from collections import Counter
import dataclasses

import numpy as np
import pytest

from lm.data import problems
from lm.data import vocab as vocab_lib
from lm.data.problems import task
from lm.data.problems.countdown import Countdown
from lm.data.problems.game24 import Game24
from lm.types import UserError

NAMES = sorted(problems.TASKS)
WAIT, BACK = "Wait\n", "Back to: "


def rng(seed=0):
  return np.random.default_rng(seed)


def drawn(name, count=30):
  return problems.TASKS[name].problems("train", count, seed=1)


def replayed(problem, lines):
  """The state after faultless lines; fails at the first that is not."""
  state = problem.start()
  for line in lines:
    assert line.endswith("\n") and line.count("\n") == 1
    state = dict(problem.options(state))[line]
    assert problem.read(line) == state
  return state


@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_faultless_and_right(name):
  for problem in drawn(name):
    *lines, answer = task.solution(problem, rng())
    assert len(lines) == problem.num_thoughts
    assert problem.remaining(problem.start()) == problem.num_thoughts
    state = replayed(problem, lines)
    assert problem.winnable(state) and problem.remaining(state) == 0
    assert problem.grade(problem.read_answer(answer)) and "\n" not in answer
    assert task.outcome(problem, [*lines, answer]) == 1.0
    assert task.judge(problem, [*lines, answer]) == (
        [1.0] * (len(lines) + 1),) * 2


def test_solutions_choose_evenly_among_the_winning_lines():
  problem, r = Game24((2, 4, 6, 8)), rng()
  first = Counter(task.solution(problem, r)[0] for _ in range(900))
  winning = {line for line, state in problem.options(problem.start())
             if problem.winnable(state)}
  assert set(first) == winning and len(winning) > 2
  assert min(first.values()) > 0.6 * 900 / len(winning)


def test_what_cannot_be_solved_says_so():
  with pytest.raises(ValueError, match="'Make 24 from 1 1 1 1' cannot be"):
    task.solution(Game24((1, 1, 1, 1)), rng())


class Blind(Countdown):
  """A problem whose oracle must not be asked."""

  def winnable(self, state):
    raise AssertionError("asked the oracle")


def test_plays_never_ask_the_oracle_and_are_even():
  problem, r = Blind((3, 14, 25, 62), 57), rng()
  first = Counter()
  for _ in range(1500):
    *lines, answer = task.play(problem, r)
    replayed(problem, lines)
    assert answer == problem.answer(lines)
    first[lines[0]] += 1
  assert set(first) == {o[0] for o in problem.options(problem.start())}
  assert min(first.values()) > 0.6 * 1500 / len(first)
  with pytest.raises(AssertionError, match="oracle"):
    task.solution(problem, r)


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_attempts(name):
  """A label is 1 as long as nothing was faulty and the oracle says yes."""
  seen = Counter()
  made = problems.TASKS[name]
  by_prompt = {p.prompt(): p for p in drawn(name, 60)}
  again = dataclasses.replace(made, limits={}, make=lambda r, split: list(
      by_prompt.values())[r.integers(60)])
  for row in task.value_examples(again, 3, 250):
    problem = by_prompt[row["prompt"]]
    state, clean = problem.start(), True
    for line, label, imitate in zip(
        row["lines"], row["labels"], row["imitate"], strict=True):
      if not line.endswith("\n"):
        right = clean and problem.grade(problem.read_answer(line))
        assert label == imitate == float(right)
        seen["right" if right else "wrong"] += 1
        continue
      sound = line in dict(problem.options(state))
      clean = clean and sound
      state = problem.read(line)
      assert label == float(clean and problem.winnable(state)), row
      assert sound or not imitate
      seen["won" if label else "lost" if clean else "slipped"] += 1
    assert row["done"] or len(row["lines"]) == 1
  assert min(seen[k] for k in ("right", "wrong", "won", "slipped")) > 15, seen


def test_sound_lines_that_throw_a_game_away_have_a_weight_of_their_own():
  line = "13 * 10 = 130 (left: 4 9 130)\n"
  assert task.judge(Game24((4, 9, 10, 13)), [line], sound=0.3) == (
      [0.0], [0.3])


# --- Searches and revisions ---------------------------------------------------


def check_stream(problem, lines):
  """Re-plays a search; returns how often it went back."""
  *lines, answer = lines
  path, seen, back = [problem.start()], {problem.start()}, 0
  for line in lines:
    if line.startswith(BACK):
      path.pop()  # Back to an earlier state, never to where it is.
      while problem.show(path[-1]) != line[len(BACK):-1]:
        path.pop()  # IndexError: it was never there.
      back += 1
      continue
    path.append(dict(problem.options(path[-1]))[line])
    assert path[-1] not in seen  # Nothing is searched twice.
    seen.add(path[-1])
  assert problem.winnable(path[-1]) and problem.remaining(path[-1]) == 0
  assert problem.grade(problem.read_answer(answer))
  return back


@pytest.mark.parametrize("name", NAMES)
def test_searches_go_back_to_where_they_were_and_end_right(name):
  wrong = []
  for i, problem in enumerate(drawn(name, 60)):
    lines = task.stream(problem, rng(i), max_lines=30)
    assert len(lines) <= 30
    wrong.append(check_stream(problem, lines) > 0)
  if name in ("game24", "countdown"):
    assert 0.6 < np.mean(wrong) < 1.0


def test_a_search_without_room_is_a_solution():
  problem = Game24((4, 9, 10, 13))
  for i in range(20):
    assert len(task.stream(problem, rng(i), max_lines=4)) == 4
    assert not check_stream(problem, task.stream(problem, rng(i), wrong=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_revisions_fail_until_the_last_attempt(name):
  tries = Counter()
  for i, problem in enumerate(drawn(name, 40)):
    lines = task.revision(problem, rng(i), attempts=3)
    attempts = [[]]
    for line in lines:
      if line == WAIT:
        attempts.append([])
      else:
        attempts[-1].append(line)
    *failed, last = attempts
    tries[len(failed)] += 1
    assert task.outcome(problem, last) == 1.0
    assert all(not task.outcome(problem, f) and f for f in failed)
    assert all(line.endswith("\n") for f in failed for line in f)
    assert problem.grade(problem.read_answer("".join(lines)))
  assert set(tries) == {1, 2} and min(tries.values()) > 8, tries


@pytest.mark.parametrize("name", NAMES)
def test_as_many_states_win_as_do_not(name):
  wins, depths = [], Counter()
  for i in range(200):
    problem, state, win = task.verdict(problems.TASKS[name], rng(i))
    assert win == problem.winnable(state)
    wins.append(win)
    depths[problem.remaining(state), win] += 1
  assert 0.4 < np.mean(wins) < 0.6
  if name in ("game24", "countdown"):
    assert len(depths) == 6 and min(depths.values()) > 15, depths


# --- Rows ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what, prefix", [
    ("solutions", ""), ("formats", ""), ("streams", "Search: "),
    ("revisions", "Revise: ")])
def test_dialogues_ask_each_kind_in_its_own_way(name, what, prefix):
  made = problems.TASKS[name]
  rows = list(task.dialogues(made, what, 5, 20))
  for row in rows:
    user, assistant = row["messages"]
    assert user == {"role": "user", "content": prefix + row["holdout"]}
    assert assistant["role"] == "assistant"
    assert assistant["content"].splitlines()[-1].startswith("Answer: ")
  assert rows == list(task.dialogues(made, what, 5, 40))[:20]
  assert rows != list(task.dialogues(made, what, 6, 20))


def test_verdicts_are_questions():
  for row in task.dialogues(problems.TASKS["game24"], "verdicts", 0, 20):
    user, assistant = (m["content"] for m in row["messages"])
    state = tuple(map(int, user.removeprefix("Can 24 be made from ")[:-1]
                      .split()))
    assert row["holdout"].startswith("Make 24 from ")
    assert assistant == ("yes" if Game24((1,) * 4).winnable(state) else "no")


def test_options_reach_the_writer():
  made = problems.TASKS["game24"]
  for row in task.dialogues(made, "streams", 0, 20, max_lines=9):
    assert row["messages"][1]["content"].count("\n") < 9
  with pytest.raises(UserError, match="did you mean 'streams'"):
    next(task.dialogues(made, "stream", 0, 1))


def test_symbols_are_pieces_and_cut_no_words():
  made = problems.TASKS["countdown"]
  rows = [m["content"] for what in ("streams", "revisions", "verdicts")
          for row in task.dialogues(made, what, 0, 60) for m in row["messages"]]
  rows += ["Who knows nothing of yesterday?"] * 300
  vocab = vocab_lib.train(rows, 780, symbols=made.symbols)
  def pieces(text):
    return [vocab.piece(i).replace("\u2581", " ") for i in vocab.encode(text)]
  assert pieces("Back to: 4 44\n") == ["Back to:", " 4", " 44", "\n"]
  assert pieces("Wait\n")[0] == "Wait\n"
  assert pieces("Search: Make")[0] == "Search:"
  assert pieces("Revise: Make")[0] == "Revise:"
  assert pieces("Who knows nothing of")[1:3] == [" knows", " nothing"]
  # The two verdicts differ in their first piece, whatever they are cut into.
  assert pieces("yes")[0] != pieces("no")[0]


# --- Tasks --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_drawn_from_and_do_not_repeat(name):
  made = problems.make_task(name)
  assert made.name == name and set(task.SYMBOLS) < set(made.symbols)
  found = {s: [p.prompt() for p in made.problems(s, 15, seed=2)]
           for s in made.splits}
  assert found["test"] == [p.prompt() for p in made.problems("test", 15, 2)]
  every = [p for prompts in found.values() for p in prompts]
  assert len(set(every)) == len(every) == 15 * len(made.splits)


def test_more_problems_than_there_are():
  with pytest.raises(UserError, match="only 100 different problems"):
    problems.TASKS["game24"].problems("test", 101)


def test_dials_are_checked():
  made = problems.make_task("countdown", numbers=5)
  assert all(len(p.numbers) == 5 for p in made.problems("train", 5))
  # One dial turned leaves the other as it was.
  both = made.with_dials(highest=20).problems("train", 5)
  assert all(len(p.numbers) == 5 and max(p.numbers) <= 20 for p in both)
  for dials, words in (
      ({"number": 5}, "no dial 'number': did you mean 'numbers'"),
      ({"numbers": 7}, "numbers is 7: give a whole number from 3 to 6"),
      ({"numbers": 4.0}, "whole number"), ({"numbers": True}, "whole number")):
    with pytest.raises(UserError, match=words):
      made.with_dials(**dials)
  with pytest.raises(UserError, match="did you mean 'countdown'"):
    problems.make_task("count_down")
  with pytest.raises(UserError, match="did you mean 'test'"):
    made.draw(rng(), "tset")
