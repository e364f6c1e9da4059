"""System 1 against system 2: accuracy against thinking, at equal weights.

    python -m experiments.search.run --config=configs/search/demo.py
        --workdir=runs/search/demo --config.init=runs/demo/judge

Every method of `config.methods` answers every problem once; the exact grader
scores the answers afterwards. The problems are those of `config.task`, or of
each of `config.tasks`. report.json holds, per task and method: accuracy with
its interval, and tokens, FLOPs and seconds per problem; the trees of the
hardest problems (draw them with `lm draw`); and how far the leaves' scores can
be trusted, which calibration.png shows. With --problems=FILE (one row of
`config.task` a line, such as `{"numbers": [4, 9, 10, 13]}`) the method
`config.answer` answers your own problems instead; --json=OUT takes one answer a
line. The same command goes on with the first task that it has not finished.
"""

import dataclasses
import hashlib
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
from lm import train
from lm.data import store
from lm.evals import curves, plots
from lm.launch import main, methods as methods_lib, stage
from lm.launch.methods import Method
from lm.types import UserError

from experiments.search import findings
from experiments.search import tasks

_PROBLEMS = flags.DEFINE_string("problems", None, "JSONL of your own problems")
_JSON = flags.DEFINE_string("json", None, "where their answers go")
# What a config need not say.
DEFAULTS = dict(task="game24", dials={}, split="test", problems=100, tasks={},
                budget={}, value_init="", critic="")


def solve(method: Method, writer, problems, key, *, batch: int, critic=None):
  """All results of one method, `batch` problems at a time, and the seconds."""
  evaluate = critic if method.evaluate == methods_lib.CRITIC else (
      method.evaluate)
  results, start = [], time.perf_counter()
  chunks = range(0, len(problems), batch)
  for i in track(chunks, description=method.label, transient=True,
                 disable=len(chunks) == 1):
    results += search.solve(
        method.strategy, writer, problems[i:i + batch],
        jax.random.fold_in(key, i), evaluate=evaluate,
        budget=method.budget)
  return results, time.perf_counter() - start


def with_value_head(loaded: train.Loaded, other: train.Loaded) -> train.Loaded:
  """The model under the value head of another checkpoint of its kind.

  Raises:
    UserError: that has none, or is another model's.
  """
  where = f"config.value_init={other.path}"
  if "value" not in other.params:
    raise UserError(f"{where} has no value head: name a run of"
                    " experiments.value")
  if other.vocab is None or other.vocab.hash != loaded.vocab.hash:
    raise UserError(f"{where} is the value head of another model: its"
                    f" vocabulary is not that of {loaded.path}")
  shapes = [jax.tree.map(np.shape, {k: v for k, v in x.params.items()
                                    if k != "value"}) for x in (loaded, other)]
  if shapes[0] != shapes[1]:
    raise UserError(f"{where} is the value head of another model: its shapes"
                    f" are not those of {loaded.path}")
  return dataclasses.replace(
      loaded, config=loaded.config.replace(scalar_head=True),
      params={**loaded.params, "value": other.params["value"]})


def load(c) -> train.Loaded:
  """The checkpoint of `config.init`, under the head of `config.value_init`."""
  place = lambda folder: folder.replace("{seed}", str(c["seed"]))
  loaded = stage.init_from(place(c["init"]), which=c["which"])
  if c["value_init"]:
    loaded = with_value_head(loaded, stage.init_from(
        place(c["value_init"]), which=c["which"]))
  return loaded


def load_critic(c, methods) -> search.Critic | None:
  """The model of `config.critic`; None if no method asks for it.

  Raises:
    UserError: a method does and none is named, or it has no value head.
  """
  asking = [m.name for m in methods if m.evaluate == methods_lib.CRITIC]
  if not asking:
    return None
  if not c["critic"]:
    raise UserError(f"config.methods.{asking[0]} asks a critic: name its"
                    " checkpoint by config.critic")
  loaded = stage.init_from(
      c["critic"].replace("{seed}", str(c["seed"])), which=c["which"])
  if not loaded.config.scalar_head:
    raise UserError(f"config.critic={loaded.path} has no value head: name a run"
                    " of experiments.value")
  return search.Critic(methods_lib.writer(loaded, c))


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  c = DEFAULTS | config.to_dict()
  stage.check_fields("config", c, (
      "seed", "mesh", "init", "which", "methods", "answer", "trees",
      *methods_lib.SAMPLING, *DEFAULTS,
      *(f for f in stage.ABLATION_FIELDS if f in c)))
  methods_lib.make_budget("config.budget", c["budget"])
  methods = {n: methods_lib.make(n, m, c["budget"])
             for n, m in c["methods"].items()}
  if c["answer"] not in methods:
    raise UserError(f"config.answer={c['answer']!r} is none of config.methods:"
                    f" {', '.join(methods)}")
  if _PROBLEMS.value:
    jobs = [dataclasses.replace(
        tasks.read(_PROBLEMS.value, tasks.make_task(c)),
        methods=(c["answer"],))]
  else:
    jobs = tasks.jobs(c, methods)
  loaded, critic = load(c), load_critic(c, methods.values())
  for job in jobs:
    for name in job.methods:
      methods_lib.check(methods[name], job.problems, model=str(loaded.path),
                        has_values=loaded.config.scalar_head)
  writer = methods_lib.writer(loaded, c)
  if _PROBLEMS.value:
    results, _ = solve(methods[c["answer"]], writer, jobs[0].problems,
                       jax.random.key(c["seed"]), batch=c["batch"],
                       critic=critic)
    _write_answers(jobs[0].problems, results,
                   _JSON.value or workdir / "answers.jsonl")
    return
  _report(c, jobs, methods, writer, loaded, critic, workdir)


def _report(c, jobs, methods, writer, loaded, critic,
            workdir: pathlib.Path) -> None:
  """Searches every job, and writes report.json, result.json and figures.

  What a job came to is also kept by itself, so that an interrupted search goes
  on with the next one.
  """
  report = {"seed": c["seed"], "checkpoint": str(loaded.path),
            "parameters": loaded.config.num_params, "trees": [], "tasks": {}}
  result: dict[str, float] = {}
  for job in jobs:
    kept = workdir / "tasks" / f"{job.name}.json"
    made_of = hashlib.sha256(json.dumps(
        [c, str(loaded.path), loaded.description], default=str,
        sort_keys=True).encode()).hexdigest()
    found = _kept(kept, made_of)
    if found is None:
      found = {"made_of": made_of, **_search(
          c, job, methods, writer, critic)}
      kept.parent.mkdir(exist_ok=True)
      store.write_atomic(kept, json.dumps(found).encode())
    about, rows = found["about"], found["about"]["methods"]
    report["trees"] += found["trees"]
    report["tasks"][job.name] = about
    if odds := about["calibration"]:
      name = "calibration" if len(jobs) == 1 else f"calibration_{job.name}"
      plots.save(plots.reliability(odds["predicted"], odds["outcomes"]),
                 workdir / f"{name}.png")
    before = "" if len(jobs) == 1 else f"{job.name}/"
    result |= {f"{before}{r['name']}/accuracy": r["accuracy"] for r in rows}
    chosen = next((r for r in rows if r["name"] == c["answer"]), None)
    if chosen:
      result |= {f"{before}{k}": chosen[k]
                 for k in ("accuracy", "generated_tokens", "flops")}
    Console().print(curves.table(
        rows, title=job.name if len(jobs) > 1 else ""))
  if len(jobs) == 1:  # As the demo's report and `summary` read it.
    report |= report["tasks"][jobs[0].name]
  store.write_atomic(workdir / "report.json", json.dumps(report).encode())
  store.write_atomic(workdir / stage.RESULT, json.dumps(result).encode())


def _kept(path: pathlib.Path, made_of: str):
  """What an earlier run of the same search found; None if there is none."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  return found if found.get("made_of") == made_of else None


def _search(c, job, methods, writer, critic) -> dict:
  """What the methods find on one job: {"about", "trees"}, plain JSON values."""
  rows, outcomes, costs, kept = [], {}, {}, None
  for method in (methods[name] for name in job.methods):
    results, seconds = solve(method, writer, job.problems,
                             jax.random.key(c["seed"]), batch=c["batch"],
                             critic=critic)
    correct = [bool(p.grade(r.answer)) for p, r in zip(
        job.problems, results, strict=True)]
    outcomes[method.name] = correct
    costs[method.name] = findings.costs_of(results)
    rows.append(findings.row(method, correct, results, seconds))
    if method.name == c["answer"]:
      kept = results
  about, trees = findings.section(job, rows, outcomes, costs), []
  about["calibration"] = {}
  if kept is not None:
    trees = findings.hardest(
        job, kept, outcomes, of=c["answer"], count=c["trees"])
    about["calibration"] = findings.reliability(
        job, methods[c["answer"]], kept)
  return {"about": about, "trees": trees}


def _write_answers(problems, results, path) -> None:
  lines = []
  for problem, result in zip(problems, results, strict=True):
    lines.append(json.dumps({
        "prompt": problem.prompt(), "answer": result.answer,
        "correct": bool(problem.grade(result.answer)), "text": result.text,
        "generated_tokens": result.cost.generated_tokens,
        "flops": result.cost.flops}))
  store.write_atomic(pathlib.Path(path), ("\n".join(lines) + "\n").encode())
  solved = np.mean([json.loads(line)["correct"] for line in lines])
  Console().print(f"{len(lines)} answers, {solved:.0%} right, in"
                  f" {os.fspath(path)}")


if __name__ == "__main__":
  main.main(run)
