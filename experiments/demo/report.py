"""The demo's report: report.html, report.json and figures.

Everything comes from what the stages left on disk, so it can be written again
at any time:

    python -m experiments.demo.report --workdir=runs/demo
"""

import argparse
import base64
from collections.abc import Mapping, Sequence
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

from experiments.demo import stages as stages_lib
from lm.evals import curves
from lm.evals import plots
from lm.search import draw
from lm.types import UserError

TRAINING = ("pretrain", "instruct", "value", "judge")
# What a stage's curve shows, if not its loss.
LOSS = {"value": "value_loss", "judge": "value_loss"}
_TEMPLATE = pathlib.Path(__file__).with_name("report.html")


# --- What there is to report -------------------------------------------------


def collect(root: pathlib.Path, size: str = "demo") -> dict[str, Any]:
  """Everything that the stages in `root` found, as plain JSON values.

  Raises:
    UserError: a stage has not finished; it is named.
  """
  search = _read(root / "search" / "report.json")
  samples = _read(root / "samples" / "samples.json")
  about = {}
  for name in (*TRAINING, "attempts", "search", "samples"):
    seconds = stages_lib.marker(root / name).get("seconds")
    result = root / name / "result.json"
    about[name] = {"seconds": seconds}
    if name in TRAINING:
      about[name] |= {"result": _read(result), **_training(root / name)}
  seconds = [a["seconds"] for a in about.values()]
  return {
      "date": time.strftime("%Y-%m-%d"), "size": size,
      "seconds": None if None in seconds else sum(seconds),
      "machine": machine(samples.get("devices")),
      "seed": search.get("seed"), "stages": about,
      "methods": curves.ordered(search["methods"]),
      "overlap": search.get("overlap", {}),
      "trees": search.get("trees", []), "samples": samples,
  }


def _read(path: pathlib.Path) -> dict[str, Any]:
  if not path.exists():
    raise UserError(f"no {path}: that stage has not finished; run python -m"
                    " experiments.demo.run again")
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise UserError(f"{path} is damaged ({e}): remove its folder and run the"
                    " demo again") from e


def _training(folder: pathlib.Path) -> dict[str, Any]:
  from lm.train import hooks
  return {"metrics": hooks.read_metrics(folder)}


def machine(devices: str | None = None) -> dict[str, Any]:
  """What the numbers were measured on."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.exists():
    lines = info.read_text().splitlines()
    name = next((x.partition(":")[2].strip() for x in lines
                 if x.startswith("model name")), name)
  memory = None
  if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
  cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
           else os.cpu_count())
  return {
      "processor": name, "cores": cores, "memory_gib": memory,
      "devices": devices, "system": platform.platform(terse=True),
      "python": platform.python_version(),
      "jax": importlib.metadata.version("jax"),
      "flax": importlib.metadata.version("flax"),
  }


# --- In words ----------------------------------------------------------------


def duration(seconds: float | None) -> str:
  """Such as "41 s" or "12 min 5 s"."""
  if seconds is None:
    return "?"
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def percent(share: float) -> str:
  return f"{100 * share:.0f}%"


def quantity(x: float) -> str:
  """Such as "2.1 G", three digits at most."""
  for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if x >= size:
      return f"{x / size:.3g} {unit}"
  return f"{x:.3g}"


def headline(found: Mapping[str, Any]) -> list[str]:
  """The result in sentences: what was measured, no more."""
  methods = {m["name"]: m for m in found["methods"]}
  n = max(m["n"] for m in methods.values())
  greedy = next((m for m in methods.values() if m["family"] == "greedy"), None)
  trees = [m for m in methods.values() if m["family"] == "tot_value"]
  lines = []
  if greedy:
    lines.append(
        f"Without a second thought (greedy) the model solves"
        f" {percent(greedy['accuracy'])} of {n} games it never saw, with"
        f" {greedy['generated_tokens']:.0f} tokens each.")
  if trees:
    best = max(trees, key=lambda m: (m["accuracy"], -m["generated_tokens"]))
    low, high = best["interval"]
    lines.append(
        f"With a tree of thoughts under its value head ({best['label']}) it"
        f" solves {percent(best['accuracy'])} (95% interval {percent(low)} to"
        f" {percent(high)}), with {best['generated_tokens']:,.0f} tokens each.")
    others = [m for m in methods.values()
              if m["family"] in ("best_of_n", "self_consistency")]
    rival = curves.best_within(others, best["generated_tokens"] * 1.1)
    if rival:
      lines.append(
          f"The best sampling method at no more tokens (within a tenth):"
          f" {rival['label']}, {percent(rival['accuracy'])}.")
  return lines


def budgets(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The best method at each of a few budgets of generated tokens."""
  found: list[dict[str, Any]] = []
  for budget in (50, 100, 200, 300, 600, 1000, 2000, 5000):
    best = curves.best_within(methods, budget)
    if best and (not found or best["name"] != found[-1]["method"]["name"]):
      found.append({"budget": budget, "method": best})
  return found


def chosen_trees(trees: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The hardest solved game's tree and the hardest failed one's."""
  trees = sorted((t for t in trees if t["result"]["nodes"]),
                 key=lambda t: -(t.get("rank") or 0))
  solved = [t for t in trees if t["correct"]]
  failed = [t for t in trees if not t["correct"]]
  return solved[:1] + failed[:1]


# --- On paper ----------------------------------------------------------------


def write(found: Mapping[str, Any], root: pathlib.Path) -> pathlib.Path:
  """Writes figures, report.json and report.html; returns the last's path."""
  import jinja2
  figures = {
      "thinking": plots.thinking(
          found["methods"], costs=("generated_tokens", "flops")),
      "losses": plots.losses(
          {name: found["stages"][name]["metrics"] for name in TRAINING},
          keys=LOSS),
  }
  for name, figure in figures.items():
    plots.save(figure, root / f"{name}.png")
  trees = []
  for i, item in enumerate(chosen_trees(found["trees"])):
    svg = draw.tree(item["result"], prompt=item["prompt"],
                    correct=item["correct"])
    (root / f"tree{i + 1}.svg").write_text(svg, encoding="utf-8")
    trees.append({**item, "svg": svg})
  _write_json(found, root / "report.json")
  environment = jinja2.Environment(
      autoescape=True, trim_blocks=True, lstrip_blocks=True,
      undefined=jinja2.StrictUndefined)
  environment.filters |= {
      "duration": duration, "percent": percent, "quantity": quantity}
  text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
      r=found, headline=headline(found), trees=trees,
      budgets=budgets(found["methods"]), training=TRAINING,
      colours={k: v[0] for k, v in plots.FAMILIES.items()},
      figures={k: _data_uri(plots.svg(f)) for k, f in figures.items()})
  path = root / "report.html"
  path.write_text(text, encoding="utf-8")
  return path


def _data_uri(svg: str) -> str:
  data = base64.b64encode(svg.encode()).decode()
  return f"data:image/svg+xml;base64,{data}"


def _write_json(found: Mapping[str, Any], path: pathlib.Path) -> None:
  """Without the trees and the curves: those are in the stages' folders."""
  stages = {name: {k: v for k, v in about.items() if k != "metrics"}
            for name, about in found["stages"].items()}
  small = {**found, "stages": stages}
  del small["trees"]
  partial = path.with_suffix(".tmp")
  partial.write_text(json.dumps(small, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, path)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
      prog="python -m experiments.demo.report",
      description="Writes the report of a finished demo again.")
  parser.add_argument("--workdir", default="runs/demo")
  parser.add_argument("--size", default="demo", help="as in the demo's run")
  args = parser.parse_args(argv)
  root = pathlib.Path(args.workdir)
  try:
    written = write(collect(root, args.size), root)
  except UserError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  sys.stdout.write(f"{written}\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
