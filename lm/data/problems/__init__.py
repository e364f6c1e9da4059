"""Problems with a checkable answer: to draw, to work on, and to grade.

`TASKS` holds every family; each is one file, and `task.py` has what they share.
"""

from collections.abc import Iterator, Sequence

from lm.data.problems import countdown, game24, star_graph, words
from lm.data.problems import task as task_lib
from lm.data.problems.task import Task
from lm.data.vocab import ByteVocab
from lm.types import UserError

TASKS: dict[str, Task] = {
    "game24": game24.TASK,
    "countdown": countdown.TASK,
    "words": words.TASK,
    "star_graph": star_graph.TASK,
}


def make_task(name: str, **dials: int) -> Task:
  """A task by name, with its dials turned; UserError names the known ones."""
  if name not in TASKS:
    raise UserError(f"task {name!r} is unknown:"
                    f" {task_lib.nearest(name, TASKS)}")
  return TASKS[name].with_dials(**dials)


def vocabulary() -> ByteVocab:
  """Bytes, and the pieces of all tasks: for models of nothing but these."""
  return ByteVocab([s for task in TASKS.values() for s in task.symbols])


def rows(seed: int, count: int, *, task: str, what: str,
         dials: Sequence[tuple[str, int]] = (), **options) -> Iterator[dict]:
  """Rows to learn from, by names; `what` as in `task.WHAT`."""
  made = make_task(task, **dict(dials))
  if what == "facts":
    if task != "countdown":
      raise UserError(f"{task} has no facts to practise: use task='countdown'")
    known = {k: v for k, v in dict(dials).items() if k != "numbers"}
    return countdown.facts(seed, count, **known)
  if what == "values":
    return task_lib.value_examples(made, seed, count, **options)
  return task_lib.dialogues(made, what, seed, count, **options)
