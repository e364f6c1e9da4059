"""The model plays training games itself; every line gets its outcome.

    python -m experiments.attempts.run --config=configs/attempts/tiny.py
        --workdir=runs/attempts/tiny --config.init=runs/value/tiny

Each training game is played `samples` times. The lines of the attempts that
differ, with what the exact judge says of each, go to WORKDIR/attempts.jsonl,
from which the value head learns next: the faults are the model's own. Games
that are held out from the other stages are held out here; the paper's test
games are in no split. The same command goes on where it was.
"""

import json
import pathlib

import jax
import numpy as np
from rich.progress import track

from lm import search
from lm.data import corpus, store
from lm.data.problems import game24
from lm.launch import main, methods, stage

ATTEMPTS = "attempts.jsonl"


def chains(result: search.Result) -> list[list[str]]:
  """The attempts of one search without pruning: the lines of each.

  A line without any text (the model had nothing more to say) ends one.
  """
  continued = {n.parent for n in result.nodes}
  found = []
  for i in range(len(result.nodes)):
    if i not in continued:
      path = search.path_to(result.nodes, i)
      lines = [result.nodes[j].text for j in path]
      found.append(lines[:lines.index("")] if "" in lines else lines)
  return [lines for lines in found if lines]


def play(writer: search.Writer, puzzles, samples: int, key, *,
         sound: float) -> list[dict]:
  """Rows with the outcomes of the distinct ones of `samples` attempts."""
  problems = [game24.Game24(p) for p in puzzles]
  sample = search.Beam(samples, (samples, 1), merge=False)
  rows = []
  for problem, result in zip(
      problems, search.solve(sample, writer, problems, key, evaluate="random"),
      strict=True):
    for lines in dict.fromkeys(map(tuple, chains(result))):
      labels, imitate = game24.judge(problem.numbers, lines, sound=sound)
      rows.append({"prompt": problem.prompt(), "lines": list(lines),
                   "labels": labels, "imitate": imitate, "done": False})
  return rows


def summary(rows: list[dict]) -> dict[str, float]:
  """How the attempts went, line by line."""
  found = {"attempts": float(len(rows))}
  for i in range(game24.NUM_THOUGHTS):
    at = [r["labels"][i] for r in rows if len(r["labels"]) > i]
    found[f"success_line{i + 1}"] = float(np.mean(at)) if at else 0.0
  return found


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  c = config.to_dict()
  stage.check_fields("config", c, (
      "seed", "mesh", "init", "which", "samples", "puzzles", "holdout", "sound",
      *methods.SAMPLING))
  loaded = stage.init_from(c["init"], which=c["which"])
  methods.own(workdir, c)
  if (workdir / stage.RESULT).exists():
    return
  writer = methods.writer(loaded, c)
  puzzles = [p for p in game24.train_puzzles() if corpus.split_of(
      game24.prompt(p), c["holdout"]) == "train"][:c["puzzles"] or None]
  rows = []
  for start in track(range(0, len(puzzles), c["batch"]), "playing",
                     transient=True):
    part = workdir / f"part-{start}.json"  # One that is there is done.
    if not part.exists():
      key = jax.random.fold_in(jax.random.key(c["seed"]), start)
      played = play(writer, puzzles[start:start + c["batch"]], c["samples"],
                    key, sound=c["sound"])
      store.write_atomic(part, json.dumps(played).encode())
    rows += json.loads(part.read_bytes())
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  store.write_atomic(workdir / ATTEMPTS, lines.encode())
  store.write_atomic(workdir / stage.RESULT, json.dumps(
      summary(rows), indent=1).encode())
  for part in workdir.glob("part-*.json"):
    part.unlink()


if __name__ == "__main__":
  main.main(run)
