"""Paths in star graphs: the smallest task that next-token training fails.

From "The pitfalls of next-token prediction" (2403.06963): arms leave a centre,
and the path to the end of one of them is asked for. Every step but the first
just follows the only edge there is, so a model that learns to copy edges is
right about almost every token, and picks the first step by chance: 1 in `arms`.
A search that walks several arms, with a judge of where they end, need not know
the first step beforehand.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import re

import numpy as np

from lm.data import corpus
from lm.data.problems import task as task_lib
from lm.data.problems.problem import last_answer

SYMBOLS = (
    *(f"{space}{n}" for space in ("", "\u2581") for n in range(100)),
    "Path", "\u2581from", "\u2581to", "\u2581lead", "Answer:",
)
_TEST, _VALIDATION = 0.1, 0.04  # Shares of all graphs.

_NODE = r"(?:0|[1-9]\d?)"  # 0..99, so that each is one piece.
_PROMPT = re.compile(
    rf"Path from ({_NODE}) to ({_NODE}):((?: {_NODE}>{_NODE})+)")
_THOUGHT = re.compile(_NODE)
_ANSWER = re.compile(r"Answer: (.+)")
_PATH = re.compile(rf"{_NODE}(?: {_NODE})*")


@dataclasses.dataclass(frozen=True)
class StarGraph:
  """One graph, which is a tree; a thought is the next node, and so is a state.

  Attributes:
    centre: where the path starts; no edge leads there.
    goal: where it ends.
    edges: (from, to), in the order of the prompt; one at most to each node.
  """
  centre: int
  goal: int
  edges: tuple[tuple[int, int], ...]

  @functools.cached_property
  def _after(self) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for a, b in self.edges:
      found.setdefault(a, []).append(b)
    return found

  @functools.cached_property
  def _paths(self) -> dict[int, tuple[int, ...]]:
    """The way from the centre to every node that it leads to."""
    paths: dict[int, tuple[int, ...]] = {self.centre: (self.centre,)}
    queue = [self.centre]
    for a in queue:  # It grows meanwhile.
      for b in self._after.get(a, ()):
        paths[b] = (*paths[a], b)
        queue.append(b)
    return paths

  @property
  def num_thoughts(self) -> int:
    return len(self._paths[self.goal]) - 1

  def prompt(self) -> str:
    edges = " ".join(f"{a}>{b}" for a, b in self.edges)
    return f"Path from {self.centre} to {self.goal}: {edges}"

  def start(self) -> int:
    return self.centre

  def remaining(self, state: int) -> int:
    if state not in self._paths:  # Nowhere, and no way on from there.
      return 0
    return max(0, self.num_thoughts + 1 - len(self._paths[state]))

  def options(self, state: int) -> tuple[tuple[str, int], ...]:
    if not self.remaining(state):
      return ()
    return tuple((f"{b}\n", b) for b in self._after.get(state, ()))

  def winnable(self, state: int) -> bool:
    return state in self._paths[self.goal]

  def read(self, line: str) -> int | None:
    match = _THOUGHT.fullmatch(line.strip())
    return int(match[0]) if match else None

  def answer(self, lines: Sequence[str]) -> str:
    nodes = [self.centre, *filter(lambda n: n is not None,
                                  map(self.read, lines))]
    return f"Answer: {' '.join(map(str, nodes))}"

  def read_answer(self, text: str) -> str | None:
    match = last_answer(_ANSWER, text)
    return match[1] if match else None

  def grade(self, answer: str | None) -> bool:
    """Whether it is a path along edges from the centre to the goal."""
    if answer is None or not _PATH.fullmatch(answer):
      return False
    nodes = [int(n) for n in answer.split()]
    return (nodes[0] == self.centre and nodes[-1] == self.goal
            and all(b in self._after.get(a, ())
                    for a, b in itertools.pairwise(nodes)))

  def fault(self, state: int, line: str, rng: np.random.Generator
            ) -> tuple[str, int]:
    """A step that skips a node, jumps to another arm, goes back, or strays."""
    written = self.read_answer(line)
    if written is not None:
      nodes = written.split()
      i = rng.integers(len(nodes))
      nodes[i] = str(_other([n for n in self._paths if str(n) != nodes[i]],
                            rng))
      return f"Answer: {' '.join(nodes)}", state
    after = self.read(line)
    if after is None:
      raise ValueError(f"neither a thought nor an answer: {line!r}")
    depth = len(self._paths.get(after, ()))
    places = [
        self._after.get(after, []),
        [n for n, path in self._paths.items() if len(path) == depth],
        [state, *self._paths.get(state, ())],
        range(100),
    ]
    allowed = {n for _, n in self.options(state)}
    places = [p for p in ([n for n in place if n not in allowed]
                          for place in places) if p]
    node = _other(places[rng.integers(len(places))], rng)
    return f"{node}\n", node

  def show(self, state: int) -> str:
    return str(state)

  def question(self, state: int) -> str:
    return f"{self.prompt()}. Does {state} lead to {self.goal}?"


def _other(nodes: Sequence[int], rng: np.random.Generator) -> int:
  return int(nodes[rng.integers(len(nodes))])


def split_of(graph: StarGraph) -> str:
  """"train", "validation" or "test", whatever the order of the edges."""
  edges = " ".join(f"{a}>{b}" for a, b in sorted(graph.edges))
  name = f"star graph {graph.centre} {graph.goal} {edges}"
  if corpus.split_of(name, _TEST) != "train":
    return "test"
  return corpus.split_of(name, _TEST + _VALIDATION)


def _make(rng: np.random.Generator, split: str, *, arms: int, length: int
          ) -> StarGraph:
  while True:  # Names are random, so every split is met soon.
    names = rng.permutation(100)[:1 + arms * length].tolist()
    rows = [names[1 + i:1 + i + length]
            for i in range(0, arms * length, length)]
    edges = [e for row in rows for e in itertools.pairwise([names[0], *row])]
    order = rng.permutation(len(edges))
    graph = StarGraph(names[0], rows[0][-1], tuple(edges[i] for i in order))
    if split_of(graph) == split:
      return graph


def parse(row: dict) -> StarGraph:
  """A user's problem: {"prompt": "Path from 12 to 47: 3>47 12>3 12>5"}.

  Any tree will do. The field "answer", if there, is held against the graph.
  """
  match = _PROMPT.fullmatch(str(row.get("prompt", "")).strip())
  if match is None:
    raise ValueError('"prompt" must be like "Path from 12 to 47: 3>47 12>3",'
                     f" with nodes from 0 to 99, not {row.get('prompt')!r}")
  edges = tuple((int(a), int(b)) for a, b in (
      edge.split(">") for edge in match[3].split()))
  graph = StarGraph(int(match[1]), int(match[2]), edges)
  ends = [b for _, b in edges]
  twice = next((b for b in ends if ends.count(b) > 1), None)
  if twice is not None:
    raise ValueError(f"two edges lead to node {twice}: at most one may")
  if graph.centre in ends:
    raise ValueError(f"an edge leads to node {graph.centre}, where the path"
                     " starts: none may")
  if graph.goal == graph.centre or graph.goal not in graph._paths:
    raise ValueError(f"no path leads from {graph.centre} to {graph.goal}")
  answer = row.get("answer")
  if answer is not None and not graph.grade(str(answer)):
    right = " ".join(map(str, graph._paths[graph.goal]))
    raise ValueError("a task file with a wrong answer key: it says"
                     f" {answer!r}, and the path is {right!r}")
  return graph


TASK = task_lib.Task(
    name="star_graph", symbols=(*SYMBOLS, *task_lib.SYMBOLS), make=_make,
    parse=parse, limits={"arms": task_lib.Dial(5, 2, 11),
                         "length": task_lib.Dial(5, 2, 9)})
