"""Game of 24 against solvers and graders of the tests' own."""

import ast
from fractions import Fraction
import functools
import hashlib
import itertools
import re

import numpy as np
import pytest

from lm.data import vocab as vocab_lib
from lm.data.problems import arithmetic, game24

ALL = list(itertools.combinations_with_replacement(range(1, 14), 4))
TEST = {tuple(sorted(p)) for p in game24.test_puzzles()}


# --- A solver of the tests' own: values of subsets, not moves of play ---------


def combine(a, b):
  """All results of one operation on two rationals, in either order."""
  yield from (a + b, a * b, a - b, b - a)
  if b:
    yield a / b
  if a:
    yield b / a


@functools.cache
def values(numbers):
  """Every rational that some expression over all the numbers has."""
  if len(numbers) == 1:
    return frozenset(map(Fraction, numbers))
  found = set()
  for left, right in splits(numbers):
    for a in values(left):
      for b in values(right):
        found.update(combine(a, b))
  return frozenset(found)


def splits(numbers):
  n = len(numbers)
  for mask in range(1, 2 ** (n - 1)):
    left = tuple(x for i, x in enumerate(numbers) if mask >> i & 1)
    yield left, tuple(x for i, x in enumerate(numbers) if not mask >> i & 1)


def makes_24(numbers):
  """Whether an expression has value 24, asking for the last operand."""
  if len(numbers) == 1:
    return numbers[0] == 24
  for left, right in splits(numbers):
    other = values(right)
    for a in values(left):
      wanted = {24 - a, 24 + a, a - 24}  # a + b, b - a, a - b
      if a:  # a * b, a / b and b / a; with a = 0 none of them is 24.
        wanted |= {24 / a, a / 24, a * 24}
      if not wanted.isdisjoint(other):
        return True
  return False


@functools.cache
def integer_play(numbers):
  """Whether play with natural numbers only can end in 24."""
  if len(numbers) == 1:
    return numbers == (24,)
  for pair in itertools.permutations(range(len(numbers)), 2):
    a, b = (numbers[i] for i in pair)
    rest = [x for i, x in enumerate(numbers) if i not in pair]
    results = {a + b, a * b}
    if a >= b:
      results.add(a - b)
    if b and a % b == 0:
      results.add(a // b)
    if any(integer_play(tuple(sorted([*rest, r]))) for r in results):
      return True
  return False


def evaluate(expression):
  """Value and numbers of an expression, through Python's own evaluation."""
  names = iter(range(100))
  numbers = {}
  def name(match):
    key = f"n{next(names)}"
    numbers[key] = int(match[0])
    return key
  code = re.sub(r"\d+", name, expression)
  scope = {k: Fraction(v) for k, v in numbers.items()}
  return eval(code, {"__builtins__": {}}, scope), sorted(numbers.values())


# --- Puzzles ------------------------------------------------------------------


def test_there_are_1362_solvable_puzzles():
  solvable = {p for p in ALL if makes_24(p)}
  assert (len(ALL), len(solvable)) == (1820, 1362)
  by_integers = {p for p in ALL if integer_play(p)}
  assert len(by_integers) == 1346 and by_integers < solvable
  assert {p for p in ALL if game24.winnable(p)} == by_integers
  assert set(game24.train_puzzles()) == by_integers - TEST
  # The famous ones that need fractions, and some that nothing solves.
  for p in [(3, 3, 8, 8), (1, 3, 4, 6), (1, 5, 5, 5), (3, 3, 7, 7)]:
    assert p in solvable - by_integers and game24.solvable(p)
  for p in [(1, 1, 1, 1), (13, 13, 13, 13), (1, 1, 1, 7)]:
    assert p not in solvable and not game24.solvable(p)


def test_the_test_games_are_ranks_901_to_1000():
  path = game24.__file__.replace("game24.py", "game24_test.csv")
  with open(path, encoding="utf-8") as f:
    rows = [line.split(",") for line in f if not line.startswith("#")][1:]
  assert [int(r[0]) for r in rows] == list(range(901, 1001))
  # Of the puzzles in rows 901-1000 of tot/data/24/24.csv, in order.
  text = "\n".join(" ".join(map(str, p)) for p in game24.test_puzzles())
  assert hashlib.sha256(text.encode()).hexdigest() == (
      "d92f39c553cae8d3ebaa6d1bcf81f741ec09b53a5209ff9eb6b7cb899e6ea245")
  assert game24.test_puzzles()[0] == (4, 5, 6, 10)
  assert len(TEST) == 100 and TEST < {p for p in ALL if integer_play(p)}


def test_train_and_test_are_disjoint_as_multisets():
  train = [tuple(sorted(p)) for p in game24.train_puzzles()]
  assert len(set(train)) == len(train) == 1246
  assert not set(train) & TEST


def test_states_shared_with_training():
  """The share that is reported beside the result, counted another way."""
  share = game24.overlap()
  def states(puzzles, size):
    level = set(puzzles)
    for _ in range(4 - size):
      level = {
          tuple(sorted((*(s[k] for k in range(len(s)) if k not in (i, j)), r)))
          for s in level
          for i, j in itertools.permutations(range(len(s)), 2)
          for r in ([s[i] + s[j], s[i] * s[j]]
                    + [s[i] - s[j]] * (s[i] >= s[j])
                    + ([s[i] // s[j]] if s[j] and s[i] % s[j] == 0 else []))}
    return level
  for size in (3, 2):
    test = states(TEST, size)
    train = states(game24.train_puzzles(), size)
    assert share[size] == len(test & train) / len(test)
  assert 0.75 < share[3] < 0.77 and share[2] > 0.93, share


# --- What training reads ------------------------------------------------------


def numbers_of(prompt):
  match = re.fullmatch(r"Make 24 from (\d+ \d+ \d+ \d+)", prompt)
  return tuple(map(int, match[1].split()))


def test_dialogues_are_right_and_never_of_a_test_game():
  seen = set()
  for row in game24.dialogues(seed=0, count=400):
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    numbers = numbers_of(user["content"])
    seen.add(numbers)
    assert numbers == tuple(sorted(numbers)) and numbers not in TEST
    *lines, answer = assistant["content"].split("\n")
    states = [numbers]
    for line in lines:
      assert step_is_right(line, states[-1]), (numbers, line)
      states.append(claimed(line))
    assert states[-1] == (24,)
    expression = re.fullmatch(r"Answer: (.+) = 24", answer)[1]
    assert evaluate(expression) == (24, sorted(numbers))
    assert game24.grade(numbers, expression)
    assert game24.read_answer(assistant["content"]) == expression
    # The expression is the one played: its last step joins the last pair.
    assert [game24.read(line + "\n") for line in lines] == states[1:]
  assert len(seen) > 250


def claimed(line):
  return tuple(map(int, re.search(r"\(left: ([\d ]+)\)", line)[1].split()))


def step_is_right(line, state):
  """Re-plays one line with arithmetic of the test's own."""
  a, op, b, result, left = re.fullmatch(
      r"(\d+) ([-+*/]) (\d+) = (\d+) \(left: ([\d ]+)\)", line).groups()
  a, b, result = int(a), int(b), int(result)
  rest = list(state)
  for n in (a, b):
    if n not in rest:
      return False
    rest.remove(n)
  value = {"+": a + b, "-": a - b, "*": a * b,
           "/": Fraction(a, b) if b else None}[op]
  after = sorted([*rest, result])
  return value == result and after == list(map(int, left.split()))


def test_labels_of_attempts_are_what_a_solver_says():
  kinds = {"good": 0, "hopeless": 0, "slipped": 0, "wrong answer": 0,
           "right answer": 0, "first line only": 0}
  for row in game24.value_examples(seed=1, count=700):
    numbers = numbers_of(row["prompt"])
    assert numbers not in TEST
    state, clean = numbers, True
    assert len(row["lines"]) == len(row["labels"])
    if row["done"]:
      assert len(row["lines"]) >= 3
    else:
      assert len(row["lines"]) == 1
      kinds["first line only"] += 1
    for line, label, imitate in zip(
        row["lines"], row["labels"], row["imitate"], strict=True):
      if line.startswith("Answer: "):
        expression = re.fullmatch(r"Answer: (.+) = 24", line)[1]
        right = clean and evaluate(expression) == (24, sorted(numbers))
        assert label == imitate == float(right), (numbers, line)
        kinds["right answer" if right else "wrong answer"] += 1
        continue
      assert line.endswith("\n")
      sound = step_is_right(line[:-1], state)
      clean = clean and sound
      was, state = state, claimed(line)
      want = clean and integer_play(state)
      assert label == float(want), (numbers, row["lines"], line)
      # Imitated: no fault, and no won game thrown away.
      worth = sound and (integer_play(state) or not integer_play(was))
      assert imitate == float(worth), (numbers, row["lines"], line)
      kinds["good" if want else "hopeless" if clean else "slipped"] += 1
  # Enough of everything to learn from, and for this test to mean something.
  assert all(n > 20 for n in kinds.values()), kinds


def test_the_judge_of_any_lines():
  """By hand: (4, 9, 10, 13) is won by 10 - 4 and 13 - 9."""
  good = ["10 - 4 = 6 (left: 6 9 13)\n", "13 - 9 = 4 (left: 4 6)\n",
          "6 * 4 = 24 (left: 24)\n", "Answer: (10 - 4) * (13 - 9) = 24"]
  assert game24.judge((4, 9, 10, 13), good) == ([1.0] * 4, [1.0] * 4)
  # A slip is never forgiven; what is sound after it is still worth writing.
  slipped = ["13 - 10 = 6 (left: 4 6 9)\n", "9 - 4 = 5 (left: 5 6)\n"]
  labels, imitate = game24.judge((4, 9, 10, 13), slipped)
  assert labels == [0.0, 0.0] and imitate[0] == 0.0
  # A sound line that throws a won game away.
  assert game24.judge((4, 9, 10, 13), ["13 * 10 = 130 (left: 4 9 130)\n"]) == (
      [0.0], [0.0])
  # After what cannot be read nothing counts, however many numbers it claims.
  for bad in ("10 - 4 = six\n", "10 - 4 = 6 (left: 1 2 3 4 5 6 7 8 9)\n"):
    assert game24.judge((4, 9, 10, 13), [bad, *good[1:]]) == (
        [0.0] * 4, [0.0] * 4)
  assert game24.judge((4, 9, 10, 13), good[:3] + ["Answer: 4 * 6 = 24"]) == (
      [1.0] * 3 + [0.0], [1.0] * 3 + [0.0])


def test_a_value_of_one_can_be_reached_by_rational_play_too():
  for row in game24.value_examples(seed=2, count=60):
    for line, label in zip(row["lines"], row["labels"]):
      if label == 1.0 and "left" in line:
        assert makes_24(claimed(line))


def test_examples_are_a_function_of_the_seed():
  for make in (game24.dialogues, game24.value_examples):
    first, again, other = (list(make(s, 30)) for s in (5, 5, 6))
    assert first == again and first != other
    # A longer stream begins like a shorter one.
    assert list(make(5, 60))[:30] == first


# --- The grader ---------------------------------------------------------------

PUZZLE = (4, 9, 10, 13)


@pytest.mark.parametrize("expression", [
    "(10 - 4) * (13 - 9)", "(13-9)*(10-4)", " ((10 - 4)) * (13 - 9) ",
    "4 * (10 - (13 - 9))", "(13 - 9) * (10 - 4)"])
def test_grader_takes_what_is_right(expression):
  assert evaluate(expression.strip()) == (24, sorted(PUZZLE))
  assert game24.grade(PUZZLE, expression)
  assert game24.Game24(PUZZLE).grade(expression)


def test_grader_counts_in_fractions():
  assert game24.grade((3, 3, 8, 8), "8 / (3 - 8 / 3)")
  assert game24.grade((1, 3, 4, 6), "6 / (1 - 3 / 4)")
  assert not game24.grade((3, 3, 8, 8), "8 / (3 - 8 / 3 + 0)")
  # One part in 10^15 off: floating point would not notice.
  assert not game24.grade(
      (24, 1, 10 ** 9, 10 ** 9), "24 + 1 / 1000000000 / 1000000000")


@pytest.mark.parametrize("expression", [
    None, "", " ", "24", "4 + 9 + 10 + 13", "(10 - 4) * (13 - 9) + 0",
    "(10 - 4) * 4",  # A number missing, and one not given.
    "(10 - 4) * (13 - 9) * 1", "4 * 10 - 4 * 4", "4 * (10 - 4)",
    "(10 - 4) * (13 - 9", "(10 - 4) x (13 - 9)", "(10 - 4)(13 - 9)",
    "(10 - 4) * (13 - 9) = 24", "10 - 4 * 13 - 9", "10 4 13 9",
    "9 ** 9 ** 9 ** 9", "4 ** 9 ** 10 ** 13", "13 // 9 * 10 * 4",
    "13 % 9 * (10 - 4)", "13 << 9 << 10 << 4", "-(4 - 10) * (13 - 9)",
    "10 / (4 - 4) + 13 + 9", "+4 * (10 - (13 - 9))",
    "(10.0 - 4) * (13 - 9)", "(10 - 4) * (13 - 9) if 1 else 0",
    "(10 - 4) * (13 - 9) and 24", "__import__('os').getpid()",
    "(lambda: 24)()", "[24][0]", "'24'", "True * 24", "print(24)", "24 # 4",
    "(0xa - 4) * (13 - 9)", "(1_0 - 4) * (13 - 9)", "(0b1010 - 4) * (13 - 9)",
    "(10 - 4) * (13 - 9) # and a word", "(10 - 4) * (13 - 9)\n#", "\0",
    "(" * 150, "-" * 190 + "1", "(" * 90 + "24" + ")" * 90, "4" * 200,
    "1 " * 5000, "(10 - 04) * (13 - 9)", "(１0 - 4) * (13 - 9)",
], ids=lambda e: repr(e)[:40])
def test_grader_refuses_everything_else(expression):
  assert not game24.grade(PUZZLE, expression)


def test_grader_agrees_with_evaluation_on_random_expressions():
  rng = np.random.default_rng(0)
  right = 0
  for _ in range(3000):
    numbers = ALL[rng.integers(len(ALL))]
    used = [int(n) for n in rng.permutation(numbers)]
    if rng.random() < 0.1:
      used[0] = int(rng.integers(1, 14))
    terms = [str(n) for n in used]
    while len(terms) > 1:
      i = int(rng.integers(len(terms) - 1))
      op = "+-*/"[rng.integers(4)]
      terms[i:i + 2] = [f"({terms[i]} {op} {terms[i + 1]})"]
    try:
      want = evaluate(terms[0]) == (24, sorted(numbers))
    except ZeroDivisionError:
      want = False
    assert game24.grade(numbers, terms[0]) == want, (numbers, terms[0])
    right += want
  assert right > 5


# --- Reading what a model writes ----------------------------------------------


def test_reading_is_about_form_only():
  read = game24.read
  assert read("13 - 9 = 4 (left: 4 4 10)\n") == (4, 4, 10)
  assert read("13 - 9 = 5 (left: 1 99)") == (1, 99)  # Wrong, and readable.
  assert read("1 / 0 = 7 (left: 24)\n") == (24,)
  for line in ["", "\n", "13 - 9 = 4", "13 - 9 = 4 (left: )\n",
               "13 - 9 = -4 (left: 4)\n", "13 - 9 = 4 (left: 4 4 10",
               "13 ^ 9 = 4 (left: 4)\n", "so 13 - 9 = 4 (left: 4)\n",
               "13 - 9 = 4 (left: 4) yes\n", "Answer: 24 = 24\n",
               "1 + 1 = 2 (left: 2)\n1 + 1 = 2 (left: 2)\n"]:
    assert read(line) is None, line


def test_reading_answers():
  read = game24.read_answer
  text = "13 - 9 = 4 (left: 4 4 10)\nAnswer: (10 - 4) * (13 - 9) = 24"
  assert read(text) == read(text + "\n") == "(10 - 4) * (13 - 9)"
  assert read("Answer: 1 = 24\nAnswer: 2 = 24\n") == "2"  # The last.
  for other in ["", "Answer: 24", "Answer: 23 = 23", "answer: 24 = 24",
                "The Answer: 4 * 6 = 24", "4 * 6 = 24"]:
    assert read(other) is None, other


def test_a_game_tells_the_search_its_numbers_and_nothing_else():
  game = game24.Game24((13, 4, 10, 9))
  assert game.prompt() == "Make 24 from 4 9 10 13"
  assert game.num_thoughts == 3
  assert game.read("4 * 6 = 24 (left: 24)\n") == (24,)
  assert game.read_answer("Answer: 4 * 6 = 24") == "4 * 6"


def test_symbols_make_every_number_one_token():
  rows = list(game24.dialogues(seed=3, count=200))
  texts = [m["content"] for r in rows for m in r["messages"]]
  vocab = vocab_lib.train(texts, 490, symbols=game24.SYMBOLS)
  for text in texts:
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    pieces = [vocab.piece(i).replace("\u2581", " ") for i in ids]
    written = re.findall(r"\d+", text)
    if all(len(n) < 3 for n in written):
      assert [p.strip() for p in pieces if re.search(r"\d", p)] == written
  line = vocab.encode("13 - 9 = 4 (left: 4 4 10)\n")
  assert len(line) <= 11, [vocab.piece(i) for i in line]


def test_no_solver_in_what_the_model_is_graded_by():
  for module, names in (  # They never consult the tables of play.
      (arithmetic, ("grade", "_evaluate", "read_move", "read_answer")),
      (game24, ("grade", "read", "read_answer", "prompt"))):
    tree = ast.parse(open(module.__file__, encoding="utf-8").read())
    functions = {getattr(n, "name", None): n for n in tree.body}
    for name in names:
      used = {getattr(n, "id", getattr(n, "attr", None))
              for n in ast.walk(functions[name])}
      assert not used & {"moves", "winnable", "_reaches", "solvable"}, name
