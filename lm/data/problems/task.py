"""A family of problems, and what follows from the contract for all of them.

A new task is one file beside this one: a frozen dataclass with the methods of
`Problem`, and a `Task` that draws it. Worked answers, attempts and their
labels, searches and revisions written as text, and the rows that training reads
are all derived here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import difflib
from typing import Any

import numpy as np

from lm.data.problems.problem import Problem, State
from lm.types import UserError

WAIT = "Wait\n"
BACK = "Back to:"
# Pieces that the vocabulary keeps whole, beside a task's own. Not "yes" and
# "no": they would be cut out of "know" and "yesterday" too.
SYMBOLS = (WAIT, "Back\u2581to:", "Search:", "Revise:")

# First words of the user's turn, so that one model can answer in each way.
PREFIXES = {"solutions": "", "formats": "", "streams": "Search: ",
            "revisions": "Revise: ", "verdicts": ""}
WHAT = (*PREFIXES, "values", "facts")  # Rows there are.
# Random streams of their own; 24 and 42 are those of the first Game of 24.
_STREAMS = {"solutions": 24, "values": 42, "formats": 51, "streams": 52,
            "revisions": 53, "verdicts": 54, "problems": 55, "facts": 56}
_REDRAWS = 200  # Before a draw that must fit is given up.


@dataclasses.dataclass(frozen=True)
class Dial:
  """A whole number that makes a task easier or harder."""
  default: int
  low: int
  high: int


def _no_overlap(problems: Sequence[Any]) -> dict[int, float]:
  return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """A family of problems.

  Attributes:
    name: as configs write it.
    symbols: pieces that the vocabulary keeps whole.
    make: make(rng, split, **dials) -> a problem.
    parse: a problem from a user's row; ValueError with the reason.
    limits: the dials there are.
    dials: those that are set; the others have their defaults.
    splits: that do not meet; data for training is drawn from "train".
    overlap: what of these test problems training may have met, by share.
  """
  name: str
  symbols: tuple[str, ...]
  make: Callable[..., Problem]
  parse: Callable[[dict], Problem]
  limits: Mapping[str, Dial] = dataclasses.field(default_factory=dict)
  dials: Mapping[str, int] = dataclasses.field(default_factory=dict)
  splits: tuple[str, ...] = ("train", "validation", "test")
  overlap: Callable[[Sequence[Any]], dict[int, float]] = _no_overlap

  def with_dials(self, **dials: int) -> "Task":
    """The task with some dials turned; UserError if that cannot be done."""
    for name, value in dials.items():
      if name not in self.limits:
        raise UserError(f"{self.name} has no dial {name!r}:"
                        f" {nearest(name, self.limits)}")
      dial = self.limits[name]
      if (isinstance(value, bool) or not isinstance(value, int)
          or not dial.low <= value <= dial.high):
        raise UserError(f"{self.name}: {name} is {value!r}: give a whole number"
                        f" from {dial.low} to {dial.high}")
    return dataclasses.replace(self, dials={**self.dials, **dials})

  def draw(self, rng: np.random.Generator, split: str = "train") -> Problem:
    """One problem of a split."""
    if split not in self.splits:
      raise UserError(f"{self.name} has no split {split!r}:"
                      f" {nearest(split, self.splits)}")
    every = {k: d.default for k, d in self.limits.items()}
    return self.make(rng, split, **{**every, **self.dials})

  def problems(self, split: str, count: int, seed: int = 0) -> list[Problem]:
    """So many different problems; UserError if the split has fewer."""
    rng = _rng("problems", seed)
    found: dict[str, Problem] = {}
    missed = 0
    while len(found) < count and missed < 1000 + 10 * len(found):
      problem = self.draw(rng, split)
      missed = missed + 1 if problem.prompt() in found else 0
      found.setdefault(problem.prompt(), problem)
    if len(found) < count:
      raise UserError(f"{self.name}: found only {len(found)} different problems"
                      f" of split {split!r}, not {count}: ask for fewer")
    return list(found.values())


def nearest(name: str, known: Mapping | Sequence[str]) -> str:
  """The end of a message about an unknown name."""
  close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
  return (f"did you mean {close[0]!r}?" if close
          else f"known: {', '.join(known) or 'none'}")


def _rng(stream: str, seed: int) -> np.random.Generator:
  return np.random.default_rng((_STREAMS[stream], seed))


def _pick(options: Sequence, rng: np.random.Generator):
  return options[rng.integers(len(options))]


# --- Answers to one problem --------------------------------------------------


def solution(problem: Problem, rng: np.random.Generator) -> list[str]:
  """A worked answer: at each step a uniform choice of the winning lines.

  ValueError if there is none, as may be for a user's own problem.
  """
  state, lines = problem.start(), []
  while options := problem.options(state):
    winning = [o for o in options if problem.winnable(o[1])]
    if not winning:
      raise ValueError(f"{problem.prompt()!r} cannot be solved")
    line, state = _pick(winning, rng)
    lines.append(line)
  return [*lines, problem.answer(lines)]


def play(problem: Problem, rng: np.random.Generator) -> list[str]:
  """Faultless lines chosen blindly: tells the form, not which lines win."""
  state, lines = problem.start(), []
  while options := problem.options(state):
    line, state = _pick(options, rng)
    lines.append(line)
  return [*lines, problem.answer(lines)]


def _walk(problem: Problem, rng: np.random.Generator, *, good: float,
          slip: float, steps: int | None = None) -> tuple[list[str], State]:
  """Up to `steps` lines of an attempt, and the state they claim."""
  state, lines = problem.start(), []
  while (options := problem.options(state)) and len(lines) != steps:
    if (any(problem.winnable(o[1]) for o in options)
        and rng.random() < good):
      options = [o for o in options if problem.winnable(o[1])]
    line, after = _pick(options, rng)
    if rng.random() < slip:
      line, after = _slip(problem, state, line, rng)
    lines.append(line)
    state = after
  return lines, state


def _slip(problem: Problem, state: State, line: str, rng: np.random.Generator
          ) -> tuple[str, State]:
  """A faulty line; half of the time one that lands in a won game.

  Those are the faults that a policy which looks for won games makes.
  """
  faults = [problem.fault(state, line, rng) for _ in range(8)]
  tempting = [f for f in faults if problem.winnable(f[1])]
  if tempting and rng.random() < 0.5:
    return tempting[0]
  return faults[0]


def attempt(problem: Problem, rng: np.random.Generator, *, good: float = 0.5,
            slip: float = 0.2) -> list[str]:
  """The lines of a problem worked well or badly.

  Args:
    problem: to work on.
    rng: of the play.
    good: chance that a line is drawn from the winning ones, if there are any.
    slip: chance that a line is faulty, or the answer copied wrongly.

  Returns:
    Thoughts; the answer line after those that claim to have won, and after
    some of the others.
  """
  lines, state = _walk(problem, rng, good=good, slip=slip)
  won = problem.remaining(state) == 0 and problem.winnable(state)
  if won or rng.random() < 0.3:
    answer = problem.answer(lines)
    if rng.random() < slip:
      answer, _ = problem.fault(state, answer, rng)
    lines.append(answer)
  return lines


def judge(problem: Problem, lines: Sequence[str], *, sound: float = 0.0
          ) -> tuple[list[float], list[float]]:
  """The outcome of every line of an attempt, and which are worth imitating.

  Args:
    problem: that was worked on.
    lines: thoughts, and perhaps an answer, as they were written.
    sound: how much lines without a fault that throw a won game away are worth
      imitating: a policy that proposes them too is broader.

  Returns:
    (labels, imitate). A label is 1.0 where the answer can still be reached and
    no line was faulty so far; the answer's label is whether it is right.
    `imitate` is 1.0 for lines worth writing: those without a fault that do not
    throw a won game away (in a lost one any sound line will do).
  """
  state: State | None = problem.start()
  clean, labels, imitate = True, [], []
  for line in lines:
    answer = problem.read_answer(line)
    after = problem.read(line)
    if answer is not None:
      labels.append(float(clean and problem.grade(answer)))
      imitate.append(labels[-1])
    elif (state is None or after is None
          or problem.remaining(after) != problem.remaining(state) - 1):
      state, clean = None, False  # What follows means nothing.
      labels.append(0.0)
      imitate.append(0.0)
    else:
      faultless = line in {o[0] for o in problem.options(state)}
      clean = clean and faultless
      wins = problem.winnable(after)
      labels.append(float(clean and wins))
      thrown_away = not wins and problem.winnable(state)
      imitate.append(0.0 if not faultless else sound if thrown_away else 1.0)
      state = after
  return labels, imitate


def outcome(problem: Problem, lines: Sequence[str]) -> float:
  """1.0 if the last line is an answer and right, else 0.0."""
  return float(bool(lines) and problem.grade(problem.read_answer(lines[-1])))


# --- Searching and revising as text ------------------------------------------


def stream(problem: Problem, rng: np.random.Generator, *, max_lines: int = 40,
           wrong: float = 0.5, width: int = 2) -> list[str]:
  """A depth-first search written as text (Stream of Search, 2404.03683).

  Wrong branches and the way back from them ("Back to: <state>") are part of
  it; it ends in the answer line.

  Args:
    problem: to solve.
    rng: of the order in which lines are tried.
    max_lines: longest search, ways back and the answer included; the order is
      drawn again until it fits, and a plain solution stands in if none does.
    wrong: chance that a wrong line is tried before each right one, and another
      before that, and so on.
    width: most lines tried in a state that cannot win before it is left.
  """
  for _ in range(_REDRAWS):
    lines: list[str] = []
    path = _descend(problem, problem.start(), rng, lines, set(),
                    room=max_lines - 1, wrong=wrong, width=width)
    if path is not None:
      return [*lines, problem.answer(path)]
  return solution(problem, rng)


def _descend(problem, state, rng, lines, seen, **bounds):
  """Writes the search below `state`; the lines that won, or None.

  No state is searched twice: `seen` are those that were reached so far.
  """
  options = problem.options(state)
  if not options:
    return [] if problem.winnable(state) else None
  order = [options[i] for i in rng.permutation(len(options))]
  winning = [o for o in order if problem.winnable(o[1])]
  if winning:
    losing = [o for o in order if not problem.winnable(o[1])]
    order = [*losing[:rng.geometric(1 - bounds["wrong"]) - 1], winning[0]]
  else:
    order = order[:bounds["width"]]
  begun = len(lines)
  for line, after in order:
    if after in seen:
      continue
    seen.add(after)
    if len(lines) > begun:
      lines.append(f"{BACK} {problem.show(state)}\n")
    lines.append(line)
    if len(lines) > bounds["room"]:
      return None
    path = _descend(problem, after, rng, lines, seen, **bounds)
    if path is not None:
      return [line, *path]
  return None


def revision(problem: Problem, rng: np.random.Generator, *, attempts: int = 3
             ) -> list[str]:
  """Failed attempts, "Wait" after each, and one that is right (2501.19393).

  One to `attempts` - 1 fail: blind plays, or attempts with faults.
  """
  lines: list[str] = []
  for _ in range(rng.integers(1, max(2, attempts))):
    for _ in range(_REDRAWS):
      tried = (play(problem, rng) if rng.random() < 0.5
               else attempt(problem, rng, good=0.9, slip=0.5))
      if not outcome(problem, tried):
        lines += [line.rstrip("\n") + "\n" for line in tried] + [WAIT]
        break
  return lines + solution(problem, rng)


def verdict(task: Task, rng: np.random.Generator, *, split: str = "train"
            ) -> tuple[Problem, State, bool]:
  """A problem, a state that an attempt at it claims, and whether that wins.

  As many states win as do not, at every depth where both exist.
  """
  want, place = rng.random() < 0.5, rng.random()
  for _ in range(_REDRAWS):
    problem = task.draw(rng, split)
    _, state = _walk(problem, rng, good=rng.choice([0.0, 0.5, 0.9]), slip=0.2,
                     steps=1 + int(place * problem.num_thoughts))
    if problem.winnable(state) == want:
      break
  return problem, state, problem.winnable(state)


# --- Rows to learn from ------------------------------------------------------

_WRITERS = {"solutions": solution, "formats": play, "streams": stream,
            "revisions": revision}


def dialogues(task: Task, what: str, seed: int, count: int, *,
              split: str = "train", **options: Any) -> Iterator[dict]:
  """Problems as dialogues, for `lm.data.chat`.

  Args:
    task: to draw from.
    what: "solutions", "formats" (blind plays), "streams", "revisions" or
      "verdicts" (a question about a state, and "yes" or "no").
    seed: of the draw.
    count: rows.
    split: of the task.
    **options: of `stream` or `revision`.

  Yields:
    {"messages", "holdout"}; the latter is the plain prompt, by which a problem
    is held out whatever is asked about it.
  """
  if what not in PREFIXES:
    raise UserError(f"what is {what!r}: {nearest(what, PREFIXES)}")
  rng = _rng(what, seed)
  for _ in range(count):
    if what == "verdicts":
      problem, state, wins = verdict(task, rng, split=split)
      turns = problem.question(state), "yes" if wins else "no"
    else:
      problem = task.draw(rng, split)
      lines = _WRITERS[what](problem, rng, **options)
      turns = PREFIXES[what] + problem.prompt(), "".join(lines)
    yield {"messages": [{"role": "user", "content": turns[0]},
                        {"role": "assistant", "content": turns[1]}],
           "holdout": problem.prompt()}


def value_examples(task: Task, seed: int, count: int, *, solved: float = 0.3,
                   first: float = 0.35, sound: float = 0.0,
                   split: str = "train") -> Iterator[dict]:
  """Problems with the outcome of each line.

  A share `solved` are worked answers, the rest attempts, of which only the
  sound lines are imitated (see `judge`). A share `first` of the attempts ends
  after the first line, which is the hardest to find and to judge.
  """
  rng = _rng("values", seed)
  for _ in range(count):
    problem = task.draw(rng, split)
    done = True
    if rng.random() < solved:
      lines = solution(problem, rng)
    else:
      lines = attempt(problem, rng, good=rng.choice([0.0, 0.5, 0.9]))
      if rng.random() < first:
        lines, done = lines[:1], False
    labels, imitate = judge(problem, lines, sound=sound)
    yield {"prompt": problem.prompt(), "lines": lines, "labels": labels,
           "imitate": imitate, "done": done}
