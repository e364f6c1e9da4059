"""Self-improvement: a model that learns a task from its own search alone.

    python -m experiments.selfplay.run --config=configs/selfplay/game24.py
        --workdir=runs/selfplay/game24/0

It begins with the form of an answer (blind plays, none of them right). Then,
round after round: search finds answers to training problems, the exact grader
accepts some, and policy and value learn from what was found (expert iteration,
1705.08439). No solver is asked anything. Problems that are rarely solved are
tried more often. Held-out problems are answered after every round;
curve.png shows how it went. The same command goes on where it was.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from rich.progress import track

from lm import model, objectives, search
from lm.data import corpus, mixture, problems, store
from lm.evals import curves, plot_style
from lm.launch import main, methods, stage
from lm.types import UserError
from experiments.selfplay import attempts as attempts_lib
from experiments.selfplay import figure

FORMATS, PLAYED = "formats.jsonl", "played.jsonl"
RIGHT, WRONG = "right.jsonl", "wrong.jsonl"  # To learn.
VISITED, VISITS = "visited.jsonl", "visits.jsonl"  # Of a round; to learn.
_FIELDS = (
    "seed", "mesh", "task", "dials", "model", "digits", "rounds", "formats",
    "play",
    "labels", "targets", "start", "rationalize", "pool", "per_round", "most",
    "recent", "failures", "practice", "epochs", "training", "evaluate",
    *methods.SAMPLING)


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  c = config.to_dict()
  stage.check_fields("config", c, (
      *_FIELDS, *(f for f in stage.ABLATION_FIELDS if f in c)))
  task = problems.make_task(c["task"], **c["dials"])
  _check(c, task)
  pool = task.problems("train", c["pool"], c["seed"])
  methods.check(methods.make("play", c["play"], where="config.play"), pool,
                has_values=True)
  task.problems(c["evaluate"]["split"], c["evaluate"]["problems"], c["seed"])
  methods.own(workdir, c)
  done = [_round(c, workdir, 0, task, pool)]
  _report(workdir, done)
  for number in range(1, c["rounds"] + 1):
    done.append(_round(c, workdir, number, task, pool))
    _report(workdir, done)


def program(config) -> stage.Program:
  """The model with a scalar head, and both losses."""
  net = model.LanguageModel(stage.model_config(
      {**config["model"], "scalar_head": True}, problems.vocabulary().size,
      length=config["training"]["length"]))
  return stage.Program(
      net, objectives.next_token_and_value(stage.apply_of(net)),
      extra=("values_BT", "value_weights_BT"))


def _check(c, task) -> None:
  if not 0 <= c["practice"] < 1:
    raise UserError(f"config.practice={c['practice']!r}: give a share from 0 to"
                    " less than 1")
  for name, known in (("labels", ("outcome", "mean", "any")),
                      ("targets", ("solutions", "visits")),
                      ("start", ("last", "formats"))):
    if c[name] not in known:
      raise UserError(f"config.{name}={c[name]!r}: use one of"
                      f" {', '.join(known)}")
  if c["rationalize"] and not hasattr(task.draw(np.random.default_rng(0)),
                                      "key"):
    raise UserError(f"config.rationalize needs a task with an answer key, which"
                    f" {task.name} has not: use words, or leave it off")
  if c["play"].get("evaluate") == methods.CRITIC:
    raise UserError("config.play.evaluate='critic' is for experiments.search:"
                    " a model that teaches itself judges itself")
  if c["targets"] == "visits" and c["play"]["kind"] != "mcts":
    raise UserError("config.targets='visits' needs config.play.kind='mcts',"
                    " whose visits they are")


def _round(c, workdir: pathlib.Path, number: int, task, pool) -> dict:
  """Plays, learns, answers held-out problems; what is done is read."""
  folder = workdir / f"round-{number:02d}"
  result = folder / stage.RESULT
  if result.exists():
    return json.loads(result.read_bytes())
  folder.mkdir(parents=True, exist_ok=True)
  found: dict[str, Any] = {"round": number}
  if number == 0:
    rows = attempts_lib.formats(task, c["seed"], c["formats"]["count"],
                                hints=c["rationalize"])
    _write(folder / FORMATS, rows)
    found["steps"] = c["formats"]["steps"]
    _learn(c, folder, found["steps"], {FORMATS: 1.0}, None)
  else:
    before = workdir / f"round-{number - 1:02d}" / "train"
    found |= _play(c, workdir, folder, number, pool, before)
    first = workdir / "round-00" / "train"
    shares, tokens = _lessons(c, workdir, folder, number)
    t = c["training"]
    found["steps"] = min(t["steps"], max(
        t["optimizer"].get("warmup", 0) + 1,
        round(c["epochs"] * tokens / (t["batch"] * t["length"]))))
    _learn(c, folder, found["steps"], shares,
           first if c["start"] == "formats" else before)
  found |= _answer(c, folder, task)
  store.write_atomic(result, json.dumps(found, indent=1).encode())
  return found


def _writer(c, folder: pathlib.Path) -> search.Writer:
  return methods.writer(stage.init_from(str(folder)), c)


def _play(c, workdir, folder, number: int, pool, before) -> dict:
  """Searches problems that are rarely solved; attempts to PLAYED."""
  rates = _rates(workdir, number)
  weights = np.array([1.05 - rates.get(p.prompt(), 0.0) for p in pool])
  rng = np.random.default_rng((c["seed"], number))
  chosen = rng.choice(len(pool), min(len(pool), c["per_round"]), replace=False,
                      p=weights / weights.sum())
  method = methods.make("play", c["play"], where="config.play")
  writer = _writer(c, before)
  played, visited, cost = [], [], search.Cost()
  for start in track(range(0, len(chosen), c["batch"]), f"round {number}",
                     transient=True):
    part = folder / f"part-{start}.json"  # One that is there is done.
    if not part.exists():
      batch = [pool[i] for i in chosen[start:start + c["batch"]]]
      key = jax.random.fold_in(jax.random.key(c["seed"]), 1000 * number + start)
      results = search.solve(method.strategy, writer, batch, key,
                             evaluate=method.evaluate, budget=method.budget)
      tried = [attempts_lib.attempts(p, r)
               for p, r in zip(batch, results, strict=True)]
      spent = search.Cost()
      if c["rationalize"]:
        spent.add(_rationalize(writer, batch, tried,
                               jax.random.fold_in(key, 1)))
      for r in results:
        spent.add(r.cost)
      store.write_atomic(part, json.dumps({
          "played": [a for row in tried for a in row],
          "visits": [v for p, r in zip(batch, results, strict=True)
                     for v in attempts_lib.visits(p, r)],
          "cost": spent.__dict__}).encode())
    saved = json.loads(part.read_bytes())
    played += saved["played"]
    visited += saved["visits"]
    cost.add(search.Cost(**saved["cost"]))
  _write(folder / PLAYED, played)
  if c["targets"] == "visits":
    _write(folder / VISITED, visited)
  right = {a["prompt"] for a in played if a["right"] and not a.get("hinted")}
  return {"played": len(chosen), "solved_share": len(right) / len(chosen),
          "right_share": attempts_lib.share(played),
          "play_tokens": cost.generated_tokens, "play_flops": cost.flops}


def _rationalize(writer, batch, tried, key) -> search.Cost:
  """STaR (2203.14465, section 3.2): what was not solved, with its answer as a
  hint; attempts that get there count as if they had needed none."""
  spent = search.Cost()
  failed = [i for i, row in enumerate(tried)
            if not any(a["right"] for a in row)]
  if failed:
    hinted = [Hinted(batch[i]) for i in failed]
    for i, result in zip(failed, search.solve(
        search.self_consistency(4), writer, hinted, key), strict=True):
      spent.add(result.cost)
      tried[i] += [{**a, "hinted": True}
                   for a in attempts_lib.attempts(batch[i], result)]
  return spent


class Hinted:
  """A problem that is asked with its answer."""

  def __init__(self, problem):
    self._problem = problem
    self.num_thoughts = problem.num_thoughts
    self.read, self.read_answer = problem.read, problem.read_answer

  def prompt(self) -> str:
    return attempts_lib.HINT.format(self._problem.key(), self._problem.prompt())


def _rounds(workdir, number: int, name: str = PLAYED) -> list[list[dict]]:
  return [[row for _, row in corpus.read_jsonl(
      workdir / f"round-{n:02d}" / name)]
          for n in range(1, number + 1)]


def _write(path: pathlib.Path, rows) -> None:
  store.write_atomic(path, "".join(
      json.dumps(row) + "\n" for row in rows).encode())


def _rates(workdir, number: int) -> dict[str, float]:
  """How often each problem was solved, later rounds counting more."""
  rates: dict[str, float] = {}
  for rows in _rounds(workdir, number - 1):
    by_prompt: dict[str, list[dict]] = {}
    for a in rows:
      by_prompt.setdefault(a["prompt"], []).append(a)
    for prompt, mine in by_prompt.items():
      rates[prompt] = (rates.get(prompt, 0.0) + attempts_lib.share(mine)) / 2
  return rates


def _merged(attempts) -> list[dict]:
  """Each attempt once, with all its counts; plain if it ever was."""
  found: dict[tuple, dict] = {}
  for a in attempts:
    key = (a["prompt"], *a["lines"])
    if key in found:
      found[key]["count"] += a["count"]
      found[key]["hinted"] &= a.get("hinted", False)
    else:
      found[key] = {**a, "hinted": a.get("hinted", False)}
  return list(found.values())


def _lessons(c, workdir, folder, number: int
             ) -> tuple[dict[str, float], int]:
  """Writes what to learn this round: (the share of each file, their tokens)."""
  rounds = _rounds(workdir, number)
  every = _merged(a for rows in rounds for a in rows)
  recent = _merged(a for rows in rounds[-c["recent"]:] for a in rows)
  right, wrong = attempts_lib.lessons(
      every, recent, how=c["labels"], most=c["most"],
      failures=c["failures"], rng=np.random.default_rng((c["seed"], number, 1)),
      imitate=c["targets"] == "solutions")
  _write(folder / RIGHT, right)
  _write(folder / WRONG, wrong)
  vocab = problems.vocabulary()
  count = sum(len(vocab.encode(r["prompt"] + "".join(r["lines"]))) + 3
              for r in (*right, *wrong))
  # Who only imitates what won writes what would have won in lost games too,
  # true or not: so the form is practised on.
  form = f"../round-00/{FORMATS}"
  shares = {form: c["practice"]} if c["practice"] or not right else {}
  learnt = 1.0 - c["practice"]
  if right:
    shares[RIGHT] = 0.4 * learnt
  else:
    shares[form] += 0.4 * learnt
  if wrong:
    shares[WRONG] = 0.6 * learnt
  count = round(count / learnt)
  if c["targets"] == "solutions":
    return shares, count
  _write(folder / VISITS, [
      v for rows in _rounds(workdir, number, VISITED)[-c["recent"]:]
      for v in rows])
  return {**shares, VISITS: 0.6}, count


def _learn(c, folder, steps: int, shares: dict[str, float], before) -> None:
  """Trains on the folder's files, from `before` or from nothing."""
  config = {
      **c["training"], "seed": c["seed"], "steps": steps, "mesh": c["mesh"],
      "data": {"folder": "", "sources": {
          pathlib.Path(name).stem: dict(
              kind="dialogues", rate=share, path=str(folder / name),
              holdout=0.0) for name, share in shares.items()}}}
  made, vocab = program(c), problems.vocabulary()
  specs, length = config["data"]["sources"], config["length"]
  folders = mixture.write(specs, vocab, folder / "data", form="examples",
                          length=length)
  sources = mixture.sources(folders, form="examples", length=length,
                            batch=config["batch"], seed=c["seed"])
  begin = None
  if before:
    begin = lambda: stage.init_from(str(before)).params
  else:
    made = stage.Program(made.model, objectives.next_token(
        stage.apply_of(made.model)))
    if c["digits"]:
      begin = lambda: model.init_with_digits(made.model, vocab, c["seed"])
  stage.Stage(
      name=f"selfplay {folder.name}", workdir=folder / "train", config=config,
      program=made, vocab=vocab, source=mixture.mixed(specs, sources),
      evaluate=lambda params: {},  # Held-out problems are answered after it.
      params=begin,
  ).fit()


def _answer(c, folder, task) -> dict:
  """Held-out problems, greedily and by tree of thoughts."""
  e = c["evaluate"]
  held_out = task.problems(e["split"], e["problems"], c["seed"])
  writer, found = _writer(c, folder / "train"), {}
  for name, strategy in (("greedy", search.greedy()), (
      "search", search.tree_of_thoughts(e["b"], tuple(e["k"])))):
    results = []
    for i in range(0, len(held_out), c["batch"]):
      results += search.solve(strategy, writer, held_out[i:i + c["batch"]],
                              jax.random.key(c["seed"]))
    right = [p.grade(r.answer)
             for p, r in zip(held_out, results, strict=True)]
    found[name] = float(np.mean(right))
    found[f"{name}_interval"] = list(curves.wilson(sum(right), len(right)))
    found[f"{name}_tokens"] = float(np.mean(
        [r.cost.generated_tokens for r in results]))
  return found


def _report(workdir: pathlib.Path, done: list[dict]) -> None:
  last = done[-1]
  store.write_atomic(workdir / "curve.json", json.dumps(
      done, indent=1).encode())
  plot_style.save(figure.rounds(done), workdir / "curve.png")
  store.write_atomic(workdir / stage.RESULT, json.dumps({
      "greedy": last["greedy"], "search": last["search"],
      "before/greedy": done[0]["greedy"], "before/search": done[0]["search"],
      "rounds": last["round"]}).encode())


if __name__ == "__main__":
  main.main(run)
