"""System 1 against system 2: accuracy against thinking, at equal weights.

    python -m experiments.search.run --config=configs/search/demo.py
        --workdir=runs/search/demo --config.init=runs/demo/judge

Every method of `config.methods` answers every puzzle once; the exact grader
scores the answers afterwards. report.json holds, per method: accuracy with its
interval, generated tokens, FLOPs and seconds per puzzle. With --problems=FILE
(one `{"numbers": [4, 9, 10, 13]}` a line) the method `config.answer` answers
your own puzzles instead; --json=OUT takes one answer a line.
"""

from collections.abc import Callable
import json
import os
import pathlib
import time

from absl import flags
import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from lm import search
from lm.data import corpus, store
from lm.data.problems import game24
from lm.evals import curves
from lm.launch import main, stage
from lm.model import LanguageModel
from lm.types import UserError

_PROBLEMS = flags.DEFINE_string("problems", None, "JSONL of your own puzzles")
_JSON = flags.DEFINE_string("json", None, "where their answers go")


def strategy(name: str, method: dict) -> search.Strategy:
  """The strategy that one entry of `config.methods` describes."""
  fields = dict(method)
  kind, _ = fields.pop("kind", None), fields.pop("label", None)
  makers: dict[str, Callable[..., search.Strategy]] = {
      "greedy": search.greedy, "best_of_n": search.best_of_n,
      "self_consistency": search.self_consistency,
      "tot": search.tree_of_thoughts}
  if kind not in makers:
    raise UserError(f"config.methods.{name}.kind={kind!r}: use one of"
                    f" {', '.join(makers)}")
  return stage.call(makers[kind], where=f"config.methods.{name}", **fields)


def family(method: dict) -> str:
  """Methods that differ only in how much they think."""
  if method["kind"] == "tot":
    return f"tot_{method.get('evaluate', 'value')}"
  return method["kind"]


def read_problems(path: str) -> list[game24.Game24]:
  """Puzzles from a JSONL file; a bad row is a UserError naming its line."""
  problems = []
  for where, row in corpus.read_jsonl(pathlib.Path(path)):
    numbers = row.get("numbers") if isinstance(row, dict) else None
    if isinstance(numbers, str):
      numbers = numbers.split()
    try:
      numbers = tuple(int(str(n)) for n in numbers)
    except (TypeError, ValueError):
      numbers = ()
    if len(numbers) != 4 or min(numbers) < 1:
      raise UserError(
          f'{where}: not a puzzle: write {{"numbers": [4, 9, 10, 13]}}, four'
          " whole numbers from 1")
    problems.append(game24.Game24(numbers))
  return problems


def solve(method, writer, problems, key, *, batch: int, label: str):
  """All results of one method, `batch` problems at a time, and the seconds."""
  results, start = [], time.perf_counter()
  chunks = range(0, len(problems), batch)
  for i in track(chunks, description=label, transient=True,
                 disable=len(chunks) == 1):
    results += method(writer, problems[i:i + batch], jax.random.fold_in(key, i))
  return results, time.perf_counter() - start


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  c = config.to_dict()
  stage.check_fields("config", c, (
      "seed", "mesh", "init", "which", "temperature", "min_p", "line_tokens",
      "answer_tokens", "batch", "methods", "answer", "trees",
      *(f for f in stage.ABLATION_FIELDS if f in c)))
  methods = {n: strategy(n, m) for n, m in c["methods"].items()}
  if c["answer"] not in methods:
    raise UserError(f"config.answer={c['answer']!r} is none of config.methods:"
                    f" {', '.join(methods)}")
  problems = read_problems(_PROBLEMS.value) if _PROBLEMS.value else [
      game24.Game24(p) for p in game24.test_puzzles()]
  loaded = stage.init_from(
      c["init"].replace("{seed}", str(c["seed"])), which=c["which"])
  writer = search.Writer(
      LanguageModel(loaded.config), loaded.params, loaded.vocab,
      temperature=c["temperature"], min_p=c["min_p"],
      line_tokens=c["line_tokens"], answer_tokens=c["answer_tokens"])
  key = jax.random.key(c["seed"])
  if _PROBLEMS.value:
    results, _ = solve(methods[c["answer"]], writer, problems, key,
                       batch=c["batch"], label=c["answer"])
    _write_answers(problems, results, _JSON.value or workdir / "answers.jsonl")
    return

  rows, trees, outcomes = [], [], {}
  for name, method in methods.items():
    results, seconds = solve(
        method, writer, problems, key, batch=c["batch"], label=name)
    correct = [
        p.grade(r.answer) for p, r in zip(problems, results, strict=True)]
    outcomes[name] = correct
    label = c["methods"][name].get("label", name)
    rows.append(curves.row(
        name, correct, label=label, family=family(c["methods"][name]),
        generated_tokens=[r.cost.generated_tokens for r in results],
        flops=[r.cost.flops for r in results], seconds=seconds))
    if name == c["answer"]:
      trees = _hardest(problems, results, correct, c["trees"])
  report = {
      "methods": rows, "seed": c["seed"], "checkpoint": str(loaded.path),
      "parameters": loaded.config.num_params, "trees": trees,
      "outcomes": outcomes, "overlap": game24.overlap(),
  }
  store.write_atomic(workdir / "report.json",
                     json.dumps(report, indent=1).encode())
  result = {f"{r['name']}/accuracy": r["accuracy"] for r in rows}
  chosen = next(r for r in rows if r["name"] == c["answer"])
  result |= {k: chosen[k] for k in ("accuracy", "generated_tokens", "flops")}
  store.write_atomic(workdir / stage.RESULT, json.dumps(result).encode())
  Console().print(curves.table(rows))


def _hardest(problems, results, correct, count: int) -> list[dict]:
  """The trees of the last puzzles (the hardest by rank), solved ones first."""
  order = sorted(range(len(problems)), key=lambda i: (not correct[i], -i))
  return [{"prompt": problems[i].prompt(), "rank": 901 + i,
           "correct": bool(correct[i]), "result": results[i].to_dict()}
          for i in order[:count]]


def _write_answers(problems, results, path) -> None:
  lines = []
  for problem, result in zip(problems, results, strict=True):
    lines.append(json.dumps({
        "numbers": problem.numbers, "expression": result.answer,
        "correct": problem.grade(result.answer), "text": result.text,
        "generated_tokens": result.cost.generated_tokens,
        "flops": result.cost.flops}))
  store.write_atomic(pathlib.Path(path), ("\n".join(lines) + "\n").encode())
  solved = np.mean([json.loads(line)["correct"] for line in lines])
  Console().print(f"{len(lines)} answers, {solved:.0%} right, in"
                  f" {os.fspath(path)}")


if __name__ == "__main__":
  main.main(run)
