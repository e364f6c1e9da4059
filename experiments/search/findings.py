"""What the methods found on one task: rows, costs, trees, calibration."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from lm import search
from lm.data.problems import task as task_lib
from lm.evals import calibration
from lm.evals import curves
import numpy as np

from lm.launch.methods import Method
from experiments.search.tasks import Job

COSTS = ("generated_tokens", "forward_tokens", "flops", "seconds")
# Evaluators whose scores are log-odds of success.
_LOG_ODDS = ("value", "last_value", "self_evaluation", "rollouts")


def row(method: Method, correct: Sequence[bool],
        results: Sequence[search.Result], seconds: float) -> dict[str, Any]:
  """The row of `curves`, with the budget and all tokens read or written."""
  costs = costs_of(results)
  made = curves.row(
      method.name, correct, label=method.label, family=method.family,
      generated_tokens=costs["generated_tokens"], flops=costs["flops"],
      seconds=seconds)
  return {**made, "budget": method.budget.generated_tokens,
          "forward_tokens": sum(costs["forward_tokens"]) / len(results)}


def costs_of(results: Sequence[search.Result]) -> dict[str, list[float]]:
  """Of each problem; FLOPs are of all forward passes, value heads included."""
  return {name: [getattr(r.cost, name) for r in results] for name in COSTS}


def section(job: Job, rows: list[dict], outcomes: Mapping[str, list[bool]],
            costs: Mapping[str, dict]) -> dict[str, Any]:
  """What the report says of a task, as plain JSON values."""
  return {
      "task": job.task.name, "dials": dict(job.task.dials), "split": job.split,
      "methods": rows, "outcomes": dict(outcomes), "costs": dict(costs),
      "overlap": job.task.overlap(job.problems)}


def hardest(job: Job, results: Sequence[search.Result],
            outcomes: Mapping[str, list[bool]], *, of: str, count: int
            ) -> list[dict[str, Any]]:
  """The trees of the hardest problems, solved ones first, for `lm draw`.

  Harder is of a later rank, or else solved by fewer methods.
  """
  correct = outcomes[of]
  ease = ([-i for i in range(len(results))] if job.ranked
          else [sum(o) for o in zip(*outcomes.values(), strict=True)])
  order = sorted(range(len(results)), key=lambda i: (not correct[i], ease[i]))
  return [{"task": job.name, "prompt": job.problems[i].prompt(),
           **({"rank": 901 + i} if job.ranked else {}),
           "correct": correct[i], "result": results[i].to_dict()}
          for i in order[:count]]


def reliability(job: Job, method: Method, results: Sequence[search.Result]
                ) -> dict[str, Any]:
  """How often the leaves that a method believed in were right.

  A leaf is a readable path of all thoughts; it is right if the answer has been
  reached and no line was faulty, as `task.judge` says. Each different path of a
  problem counts once.

  Returns:
    {"method", "predicted": probabilities, "outcomes": 0 or 1} and the numbers
    of `calibration.scores`; {} without leaves, or where the method's scores are
    not odds.
  """
  if method.evaluate not in _LOG_ODDS:
    return {}
  predicted, outcomes = [], []
  for problem, result in zip(job.problems, results, strict=True):
    seen = set()
    for i, node in enumerate(result.nodes):
      if node.depth != problem.num_thoughts or node.state is None:
        continue
      lines = tuple(result.nodes[j].text
                    for j in search.path_to(result.nodes, i))
      if lines not in seen:
        seen.add(lines)
        if node.score <= -1e8:  # The budget did not allow to ask.
          continue
        odds = max(-60.0, min(60.0, node.score))
        predicted.append(1 / (1 + math.exp(-odds)))
        outcomes.append(task_lib.judge(problem, lines)[0][-1])
  if not predicted:
    return {}
  return {"method": method.name, "predicted": predicted, "outcomes": outcomes,
          **calibration.scores(np.array(predicted), np.array(outcomes))}
