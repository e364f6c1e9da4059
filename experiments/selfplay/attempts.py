"""From what a search wrote to what the next round learns.

An attempt is `{"prompt", "lines", "right", "count"}`: all lines up to an
answer, what the exact grader says of it, and how often it was written; "hinted"
if the answer was in the prompt. Nothing else tells right from wrong here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lm import search
from lm.data.problems import task as task_lib
from lm.types import UserError

HINT = "Hint {}: {}"
_FEW = 50  # Successes; with fewer, failures are drawn as for so many.


def formats(task, seed: int, count: int, *, hints: bool = False
            ) -> Iterator[dict]:
  """Blind plays of training problems, as rows: the form, and no skill.

  The few that happen to be right are left out, so nothing is demonstrated. With
  `hints` half of them are asked with the (wrong) answer that they give, so that
  a hint means something.
  """
  rng = np.random.default_rng((61, seed))
  made = solved = 0
  while made < count:
    problem = task.draw(rng)
    lines = task_lib.play(problem, rng)
    if task_lib.outcome(problem, lines):
      solved += 1
      if solved > 100 + 20 * made:
        raise UserError(f"{task.name}: nearly every blind play is right, so"
                        " there is nothing to find: turn a dial up")
      continue
    prompt = problem.prompt()
    if hints and rng.random() < 0.5:
      prompt = HINT.format(problem.read_answer(lines[-1]), prompt)
    yield {"messages": [{"role": "user", "content": prompt},
                        {"role": "assistant", "content": "".join(lines)}]}
    made += 1


def attempts(problem: search.Problem, result: search.Result) -> list[dict]:
  """The distinct attempts of one search, graded and counted."""
  found: dict[tuple[str, ...], dict] = {}
  for end in result.ends:
    path = search.path_to(result.nodes, end.leaf)
    text = "".join(result.nodes[i].text for i in path) + end.text
    lines = tuple(text.splitlines(keepends=True))
    if lines:
      row = found.setdefault(lines, {
          "prompt": problem.prompt(), "lines": list(lines),
          "right": problem.grade(end.answer), "count": 0})
      row["count"] += 1
  return list(found.values())


def share(tried: Iterable[dict]) -> float:
  """Of all that was written without a hint, how much was right; 0 of none."""
  plain = [(a["right"], a["count"]) for a in tried if not a.get("hinted")]
  total = sum(count for _, count in plain)
  return sum(right * count for right, count in plain) / max(1, total)


def visits(problem: search.Problem, result: search.Result) -> list[dict]:
  """Each visited thought with its share of its siblings' visits.

  The policy target of AlphaZero (1712.01815): rows to imitate the last line.
  """
  total: dict[int | None, int] = {}
  for node in result.nodes:
    total[node.parent] = total.get(node.parent, 0) + node.visits
  rows = []
  for i, node in enumerate(result.nodes):
    if node.visits:
      lines = [result.nodes[j].text for j in search.path_to(result.nodes, i)]
      rows.append({
          "prompt": problem.prompt(), "lines": lines,
          "labels": [None] * len(lines), "done": False,
          "imitate": [0.0] * (len(lines) - 1) + [
              node.visits / total[node.parent]]})
  return rows


def labels(every: Iterable[dict], how: str) -> dict[tuple, float]:
  """What a line that was reached is worth, by prompt and lines so far.

  'mean' is the share of right answers among all attempts that begin so, 'any'
  whether there was one (the soft and hard estimates of 2312.08935, section
  3.2).
  """
  tried: dict[tuple, list[dict]] = {}
  for a in every:
    for n in range(1, len(a["lines"]) + 1):
      tried.setdefault((a["prompt"], *a["lines"][:n]), []).append(a)
  return {k: float(any(a["right"] for a in v)) if how == "any" else share(v)
          for k, v in tried.items()}


def lessons(every: Sequence[dict], recent: Sequence[dict], *, how: str,
            most: int, failures: int, rng: np.random.Generator,
            imitate: bool = True) -> tuple[list[dict], list[dict]]:
  """(rows to imitate, rows that failed) of the attempts so far.

  Args:
    every: all attempts, without repetition.
    recent: those of which failures are taken.
    how: 'outcome' labels every line of an attempt with its own result; 'mean'
      and 'any' with those of all attempts that begin alike.
    most: successes of one problem, drawn anew each round.
    failures: of them, for each success.
    rng: of the draws.
    imitate: whether successes are imitated, or but their answer lines.
  """
  worth = {} if how == "outcome" else labels(every, how)

  def row(attempt: dict) -> dict[str, Any]:
    lines, right = attempt["lines"], attempt["right"]
    marks = [float(right) if how == "outcome" else worth[
        (attempt["prompt"], *lines[:n])] for n in range(1, len(lines) + 1)]
    weights = [float(right and imitate)] * len(lines)
    weights[-1] = float(right)  # How to write the answer is always learnt.
    return {"prompt": attempt["prompt"], "lines": lines, "labels": marks,
            "imitate": weights, "done": True}

  by_prompt: dict[str, list[dict]] = {}
  for i in rng.permutation(len(every)):
    if every[i]["right"]:
      by_prompt.setdefault(every[i]["prompt"], []).append(every[i])
  right = [row(a) for mine in by_prompt.values() for a in mine[:most]]
  wrong = [a for a in recent if not a["right"] and not a.get("hinted")]
  chosen = rng.permutation(len(wrong))[:failures * max(_FEW, len(right))]
  return right, [row(wrong[i]) for i in chosen]
