"""Many searches, of several sizes, seeds and tasks, as tables and figures.

    python -m experiments.search.grid runs/grid --out=experiments/search/grid

Reads RUNS/SIZE/SEED/report.json, what `experiments.search.run` leaves, one
config for all. Writes RESULTS.md, results.json and, for each task,
frontier_TASK.png: accuracy against FLOPs per problem, value head included. The
oracle's search is in the tables only: it is no method.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

from lm.data import store
from lm.evals import plots
from lm.types import UserError

from experiments.search import comparisons
from experiments.search import grid_text

_KEYS = ("seed", "parameters", "tasks")


def load(root: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """The reports of each size, by its folder's name, the smallest first.

  Raises:
    UserError: no report, one that is missing or damaged, sizes or seeds that
      do not fit together; the file is named.
  """
  if not root.is_dir():
    raise UserError(f"no folder {root}: give the one with SIZE/SEED/report.json"
                    " in it")
  sizes: dict[str, list[dict[str, Any]]] = {}
  for folder in sorted(p for p in root.glob("*/*") if p.is_dir()):
    sizes.setdefault(folder.parent.name, []).append(
        _read(folder / "report.json"))
  if not sizes:
    raise UserError(f"{root} holds no SIZE/SEED/report.json: run"
                    " experiments.search.run with"
                    f" --workdir={root}/SIZE/SEED first")
  first = next(iter(sizes.values()))[0]
  for name, reports in sizes.items():
    where = root / name
    seeds = [r["seed"] for r in reports]
    if len(set(seeds)) < len(seeds):
      raise UserError(f"{where}: seeds {seeds}, but each may count once: search"
                      " with --config.seed=SEED")
    counts = {r["parameters"] for r in reports}
    if len(counts) > 1:
      raise UserError(f"{where}: models of {sorted(counts)} parameters in one"
                      " size's folder: give each a folder of its own")
    for report in reports:
      _check_same(first, report, where / str(report["seed"]))
  ordered = sorted(sizes, key=lambda name: sizes[name][0]["parameters"])
  return {name: sizes[name] for name in ordered}


def _read(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise UserError(f"no {path}: run experiments.search.run with"
                    f" --workdir={path.parent}, or remove that folder")
  try:
    report = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise UserError(f"{path} is damaged ({e}): search again") from e
  if not isinstance(report, dict) or any(k not in report for k in _KEYS):
    raise UserError(f"{path} is no report of this version: search again")
  return report


def _check_same(first, report, where: pathlib.Path) -> None:
  """Refuses reports of other tasks, problems or methods."""
  if set(report["tasks"]) != set(first["tasks"]):
    raise UserError(f"{where}: tasks {', '.join(sorted(report['tasks']))}, not"
                    f" {', '.join(sorted(first['tasks']))}: search again with"
                    " one config")
  for name, task in report["tasks"].items():
    mine = first["tasks"][name]
    if set(task["outcomes"]) != set(mine["outcomes"]):
      odd = sorted(set(task["outcomes"]) ^ set(mine["outcomes"]))
      raise UserError(f"{where}: other methods on {name} ({', '.join(odd)}):"
                      " search again with one config")
    about = [{k: t[k] for k in ("task", "dials", "split")}
             | {"problems": t["methods"][0]["n"]} for t in (mine, task)]
    if about[0] != about[1]:
      raise UserError(f"{where}: other problems of {name}, {about[1]} and not"
                      f" {about[0]}: search again with one config")


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, or 2 for bad input."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.search.grid", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", type=pathlib.Path, metavar="RUNS",
                      help="the folder with SIZE/SEED/report.json in it")
  parser.add_argument("--out", type=pathlib.Path, required=True,
                      help="the folder to write into")
  parser.add_argument("--samples", type=int, default=10_000,
                      help="of each bootstrap, by default 10000")
  args = parser.parse_args(argv)
  try:
    if args.samples < 1:
      raise UserError(f"--samples={args.samples}: at least 1 is needed")
    found = comparisons.compare(load(args.runs), samples=args.samples)
    text = grid_text.markdown(found)
    args.out.mkdir(parents=True, exist_ok=True)
    _write(found, text, args.out)
  except UserError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  except OSError as e:
    sys.stderr.write(f"error: {e.filename} cannot be written: {e.strerror}\n")
    return 2
  sys.stdout.write(text)
  return 0


def _write(found: Mapping[str, Any], text: str, out: pathlib.Path) -> None:
  for name, task in found["tasks"].items():
    plots.save(plots.frontier(comparisons.methods_only(task["methods"]),
                              title=name), out / f"frontier_{name}.png")
  store.write_atomic(out / "RESULTS.md", text.encode())
  store.write_atomic(out / "results.json",
                     (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
  sys.exit(main())
