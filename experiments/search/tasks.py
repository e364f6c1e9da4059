"""What is searched: the problems of each task, and by which methods."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import fnmatch
import pathlib
from typing import Any

from lm.data import corpus
from lm.data import problems as problems_lib
from lm.data.problems import game24
from lm.launch import config_file
from lm.launch import stage
from lm.types import UserError

FIELDS = ("task", "dials", "split", "count", "methods")


@dataclasses.dataclass(frozen=True)
class Job:
  """Problems of one task, and the methods that are to solve them.

  Attributes:
    name: in the report.
    task: of the problems.
    split: of the task.
    problems: the same ones for every seed of training.
    methods: names.
  """
  name: str
  task: problems_lib.Task
  split: str
  problems: Sequence[Any]
  methods: tuple[str, ...]

  @property
  def ranked(self) -> bool:
    """Whether the problems are in the order of how hard people find them."""
    return self.task.name == "game24" and self.split == "test"


def jobs(config: Mapping[str, Any], methods: Iterable[str]) -> list[Job]:
  """What `config.tasks` asks for; without any, one job of `config.task`.

  Args:
    config: a search's, as a dict.
    methods: the names that there are.

  Raises:
    UserError: an unknown task, dial, split, field or method, or more problems
      than there are.
  """
  specs = config["tasks"] or {config["task"]: dict(
      task=config["task"], dials=config["dials"], split=config["split"],
      count=config["problems"], methods=("*",))}
  found = []
  for name, spec in specs.items():
    where = f"config.tasks.{name}"
    stage.check_fields(where, spec, FIELDS)
    task = make_task(spec)
    found.append(Job(
        name, task, spec["split"],
        draw(task, spec["split"], spec["count"], where=where),
        _chosen(spec["methods"], list(methods), where=f"{where}.methods")))
  return found


def make_task(spec: Mapping[str, Any]) -> problems_lib.Task:
  """The task of a config, its dials turned; one that is None is left alone."""
  dials = {k: v for k, v in spec["dials"].items() if v is not None}
  return problems_lib.make_task(spec["task"], **dials)


def draw(task: problems_lib.Task, split: str, count: int, *, where: str
         ) -> Sequence[Any]:
  """Problems to be solved; of Game of 24, the paper's in order of rank."""
  if isinstance(count, bool) or not isinstance(count, int) or count < 1:
    raise UserError(f"{where}: {count!r} problems: ask for at least one")
  if task.name == "game24" and split == "test":
    puzzles = game24.test_puzzles()
    if count > len(puzzles):
      raise UserError(f"{where}: {count} problems: game24 has {len(puzzles)}"
                      " test games, ask for no more")
    return [game24.Game24(p) for p in puzzles[:count]]
  return task.problems(split, count)


def _chosen(patterns: Sequence[str], known: list[str], *, where: str
            ) -> tuple[str, ...]:
  """The known names that a pattern matches, in their own order."""
  for pattern in patterns:
    if not fnmatch.filter(known, pattern):
      raise UserError(f"{where}: no method is called {pattern!r}:"
                      f" {config_file.nearest(pattern, known)}")
  found = tuple(n for n in known if any(
      fnmatch.fnmatchcase(n, pattern) for pattern in patterns))
  if not found:
    raise UserError(f"{where} is empty: name methods, or '*' for all")
  return found


def read(path: str, task: problems_lib.Task) -> Job:
  """A user's problems, a JSON object a line; the method is still to be named.

  Raises:
    UserError: a row that is none, or has a wrong answer key; its file and line
      are named.
  """
  found = []
  for where, row in corpus.read_jsonl(pathlib.Path(path)):
    try:
      found.append(task.parse(row))
    except ValueError as e:
      raise UserError(f"{where}: {e}") from e
  return Job(task.name, task, "", found, ())
