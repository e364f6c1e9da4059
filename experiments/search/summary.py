"""Several seeds' searches as one table, one figure and one file of numbers.

    python -m experiments.search.summary runs/game24/0 runs/game24/1
        runs/game24/2 --out=experiments/search/results

Each folder is that of a whole road (`experiments.demo.run --size=game24`) with
another seed. Writes RESULTS.md, results.json and thinking.png.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

from lm.data import store
from lm.evals import curves, plots
from lm.types import UserError

STAGES = ("pretrain", "instruct", "value", "attempts", "judge")


def load(root: pathlib.Path) -> dict[str, Any]:
  """A road's search report, with the training's cost and results.

  Raises:
    UserError: a stage is not finished; its file is named.
  """
  report = _read(root / "search" / "report.json")
  marks = [_read(root / name / "demo.json") for name in STAGES]
  return {
      **report,
      "training_seconds": sum(m["seconds"] for m in marks),
      "training_cpu_seconds": sum(m["cpu_seconds"] for m in marks),
      "stages": {n: _read(root / n / "result.json") for n in STAGES}}


def _read(path: pathlib.Path) -> dict[str, Any]:
  if not path.exists():
    raise UserError(f"no {path}: run python -m experiments.demo.run"
                    " --size=game24 for that seed first")
  return json.loads(path.read_text(encoding="utf-8"))


def summarise(roads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Rows over seeds, and paired differences, as plain JSON values."""
  seeds = [r["seed"] for r in roads]
  if len(set(seeds)) < len(seeds):
    raise UserError(f"seeds {seeds}: a seed counts once, give each road once")
  if any(set(r["outcomes"]) != set(roads[0]["outcomes"]) for r in roads):
    raise UserError("the roads were searched with different methods: run their"
                    " search again with one config")
  outcomes = {name: [r["outcomes"][name] for r in roads]
              for name in roads[0]["outcomes"]}
  rows = curves.ordered(
      curves.over_seeds([r["methods"] for r in roads], outcomes))
  return {
      "seeds": seeds,
      "parameters": roads[0]["parameters"],
      "games": rows[0]["n"], "methods": rows,
      "differences": [_difference(a, b, outcomes) for a, b in pairs(rows)],
      "overlap": roads[0]["overlap"],
      "training_seconds": [r["training_seconds"] for r in roads],
      "training_cpu_seconds": [r["training_cpu_seconds"] for r in roads],
      "stages": [r["stages"] for r in roads],
  }


def pairs(rows: Sequence[Mapping[str, Any]]):
  """What to compare: each tree under its value head with the same tree under
  another judge, and with the best sampling method that costs no more (within
  a tenth)."""
  by_name = {r["name"]: r for r in rows}
  sampled = [r for r in rows
             if r["family"] in ("best_of_n", "self_consistency")]
  for row in rows:
    if row["family"] != "tot_value":
      continue
    for judge in ("log_prob", "random"):
      other = by_name.get(row["name"].replace("value", judge))
      if other:
        yield row, other
    rival = curves.best_within(sampled, row["generated_tokens"] * 1.1)
    if rival:
      yield row, rival


def _difference(a, b, outcomes) -> dict[str, Any]:
  mean, low, high = curves.difference(outcomes[a["name"]], outcomes[b["name"]])
  return {"a": a["label"], "b": b["label"],
          "tokens": [a["generated_tokens"], b["generated_tokens"]],
          "mean": mean, "interval": [low, high]}


def markdown(found: Mapping[str, Any]) -> str:
  """The tables, for a README."""
  hours = [s / 3600 for s in found["training_cpu_seconds"]]
  lines = [
      f"{found['games']} games (ranks 901-1000), {len(found['seeds'])} seeds"
      f" ({', '.join(map(str, found['seeds']))}),"
      f" {found['parameters'] / 1e6:.1f}M parameters,"
      f" {min(hours):.2f} to {max(hours):.2f} CPU-hours of training a seed."
      " Intervals: 95 %, bootstrap over seeds and games.", "",
      "| method | solved | 95 % interval | each seed | tokens a game |"
      " MFLOP a game | seconds a game |",
      "|---|---|---|---|---|---|---|"]
  for m in found["methods"]:
    low, high = m["interval"]
    seeds = ", ".join(f"{100 * a:.0f}" for a in m["accuracies"])
    lines.append(
        f"| {m['label']} | {100 * m['accuracy']:.1f} % | {100 * low:.0f} to"
        f" {100 * high:.0f} | {seeds} | {m['generated_tokens']:,.0f} |"
        f" {m['flops'] / 1e6:,.0f} | {m['seconds']:.3f} |")
  lines += [
      "", "Differences in points, paired by seed and game:", "",
      "| this | less this | tokens a game | points | 95 % interval |",
      "|---|---|---|---|---|"]
  for d in found["differences"]:
    low, high = d["interval"]
    lines.append(
        f"| {d['a']} | {d['b']} | {d['tokens'][0]:,.0f} and"
        f" {d['tokens'][1]:,.0f} | {100 * d['mean']:+.1f} | {100 * low:+.1f} to"
        f" {100 * high:+.1f} |")
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, or 2 for bad input."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.search.summary", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("roads", nargs="+", type=pathlib.Path, metavar="ROAD",
                      help="the folder of a finished road, one a seed")
  parser.add_argument("--out", type=pathlib.Path, required=True,
                      help="the folder to write into")
  args = parser.parse_args(argv)
  try:
    found = summarise([load(root) for root in args.roads])
    text = markdown(found)
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_atomic(args.out / "results.json",
                       (json.dumps(found, indent=1) + "\n").encode())
    store.write_atomic(args.out / "RESULTS.md", text.encode())
    plots.save(plots.thinking(
        found["methods"], costs=("generated_tokens", "flops")),
        args.out / "thinking.png")
  except UserError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  sys.stdout.write(text)
  return 0


if __name__ == "__main__":
  sys.exit(main())
