"""Runs a folder of configs over several seeds, and compares the cells.

Every file of the folder is a cell: it imports its base, changes one to three
fields, and says in the config

    experiment = "experiments.pretrain.run"    the module that runs it
    metric = "bits_per_byte"                   what of result.json to compare
    expect = {"bits_per_byte": (1.9, 2.3)}     where the mean should lie

(`metric` may be a tuple; without one every number of result.json is compared.)
A cell called `base` is what the others are compared with, else the first one.
Runs are child processes and resume; a finished run is not run again.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import ml_collections

from lm.launch import config_file
from lm.types import UserError

OWN_FIELDS = ("experiment", "metric", "expect", "seed")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One config of the folder.

  Attributes:
    name: the file's name.
    path: the file.
    config: what it holds.
    changes: the fields that differ from the baseline cell.
  """

  name: str
  path: pathlib.Path
  config: ml_collections.ConfigDict
  changes: dict


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over seeds with its 95 % interval (Student's t), None for one."""

  values: tuple[float, ...]

  @property
  def mean(self) -> float:
    return statistics.fmean(self.values)

  @property
  def half_width(self) -> float | None:
    n = len(self.values)
    if n < 2:
      return None
    from scipy import stats  # Slow to import.
    spread = statistics.stdev(self.values) / math.sqrt(n)
    return float(stats.t.ppf(0.975, n - 1)) * spread

  def __str__(self) -> str:
    half = self.half_width
    return f"{self.mean:.4g}" + ("" if half is None else f" ± {half:.2g}")


def load_cells(folder: str | pathlib.Path) -> list[Cell]:
  """The cells of a folder, the baseline first.

  Raises:
    UserError: no folder, no config in it, or a config without `experiment`.
  """
  folder = pathlib.Path(folder)
  paths = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))
  if not paths:
    raise UserError(f"{folder} holds no config file: see configs/ablations for"
                    " folders that do")
  paths.sort(key=lambda p: p.stem != "base")
  configs = [config_file.load(p) for p in paths]
  base = _plain(configs[0])
  cells = []
  for path, config in zip(paths, configs, strict=True):
    if not config.get("experiment"):
      raise UserError(f"{path} does not say which experiment runs it: set"
                      ' experiment = "experiments.NAME.run"')
    plain = _plain(config)
    changes = {k: plain.get(k) for k in sorted({*base, *plain})
               if base.get(k) != plain.get(k)}
    cells.append(Cell(path.stem, path, config, changes))
  return cells


def _plain(config: ml_collections.ConfigDict) -> dict:
  return {k: v for k, v in config_file.fields(config).items()
          if k.split(".")[0] not in OWN_FIELDS
          and not isinstance(v, ml_collections.ConfigDict)}


def fingerprint(cell: Cell, overrides: Sequence[str]) -> str:
  """Changes with any field of the config that the run reads."""
  text = json.dumps([_plain(cell.config), sorted(overrides)], sort_keys=True,
                    default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_cell(
    cell: Cell, seed: int, workdir: pathlib.Path, *,
    overrides: Sequence[str] = (), on_progress=lambda line: None,
) -> dict:
  """Runs one cell with one seed unless it is done; returns result.json.

  Raises:
    UserError: the run failed (its log is named), or the folder holds a run of
      another config.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  record, result = workdir / "ablation.json", workdir / "result.json"
  mark = fingerprint(cell, overrides)
  old = json.loads(record.read_text()) if record.exists() else {}
  if old and old["fingerprint"] != mark:
    raise UserError(f"{workdir} holds a run of another config: remove it, or"
                    " choose another --workdir")
  seconds = old.get("seconds", 0.0)
  if not (result.exists() and old.get("done")):
    record.write_text(json.dumps({"fingerprint": mark, "seconds": seconds}))
    command = [sys.executable, "-m", cell.config.experiment,
               f"--config={cell.path}", f"--workdir={workdir}",
               f"--config.seed={seed}", *overrides]
    start = time.monotonic()
    with open(workdir / "log.txt", "a") as log:
      child = subprocess.Popen(command, stdout=log, stderr=log)
      try:
        while (status := _wait(child, 1.0)) is None:
          on_progress(_last_line(workdir / "metrics.jsonl"))
      finally:
        if child.poll() is None:
          child.terminate()
          child.wait()
        seconds += time.monotonic() - start
        done = child.returncode == 0 and result.exists()
        record.write_text(json.dumps(
            {"fingerprint": mark, "seconds": seconds, "done": done}))
    if not done:
      tail = _last_line(workdir / "log.txt")
      raise UserError(f"{cell.name} with seed {seed} ended with status"
                      f" {status} (log: {workdir / 'log.txt'}): {tail}")
  return {**json.loads(result.read_text()), "seconds": seconds}


def _wait(child: subprocess.Popen, seconds: float) -> int | None:
  try:
    return child.wait(seconds)
  except subprocess.TimeoutExpired:
    return None


def _last_line(path: pathlib.Path) -> str:
  if not path.exists():
    return ""
  with open(path, "rb") as f:
    f.seek(max(0, path.stat().st_size - 4096))
    lines = f.read().decode("utf-8", "replace").strip().splitlines()
  return lines[-1] if lines else ""


def metric_names(cell: Cell, results: Sequence[dict]) -> list[str]:
  """What to compare: the config's `metric`, or every number.

  Raises:
    UserError: a metric that the results do not have.
  """
  asked = cell.config.get("metric") or ()
  asked = [asked] if isinstance(asked, str) else list(asked)
  have = [k for k, v in results[0].items()
          if isinstance(v, (int, float)) and not isinstance(v, bool)]
  for name in asked:
    if any(name not in r for r in results):
      raise UserError(f"{cell.path} compares {name!r}, which its result.json"
                      f" has not: {config_file.nearest(name, have)}")
  return [*asked, "seconds"] if asked else have


def summarise(cells: Sequence[Cell], results: dict[str, list[dict]]) -> dict:
  """The table: metrics with intervals, paired differences, expectations.

  Args:
    cells: the baseline first.
    results: for each cell's name the result of each seed, in one order.

  Returns:
    {cell: {"changes", "metrics": {name: {"mean", "half_width", "values"}},
    "difference": likewise, paired by seed against the baseline, "expect":
    {name: {"low", "high", "mean", "ok"}}}}
  """
  table = {}
  for cell in cells:
    rows = results[cell.name]
    base = results[cells[0].name]
    names = metric_names(cell, rows)
    expect = cell.config.get("expect") or {}
    row = {"changes": cell.changes, "metrics": {}, "difference": {},
           "expect": {}}
    for name in names:
      values = tuple(float(r[name]) for r in rows)
      row["metrics"][name] = _as_dict(Estimate(values))
      if cell is not cells[0] and all(name in r for r in base):
        row["difference"][name] = _as_dict(Estimate(tuple(
            a - float(b[name]) for a, b in zip(values, base, strict=True))))
    for name, (low, high) in expect.items():
      if any(name not in r for r in rows):
        raise UserError(f"{cell.path} expects {name!r}, which its result.json"
                        f" has not: {config_file.nearest(name, rows[0])}")
      mean = statistics.fmean(float(r[name]) for r in rows)
      row["expect"][name] = {"low": low, "high": high, "mean": mean,
                             "ok": bool(low <= mean <= high)}
    table[cell.name] = row
  return table


def _as_dict(estimate: Estimate) -> dict:
  return {"mean": estimate.mean, "half_width": estimate.half_width,
          "values": list(estimate.values)}


def surprises(table: dict) -> list[str]:
  """One line for every mean outside of the range its config expects."""
  return [
      f"{cell}: {name} is {e['mean']:.4g}, expected {e['low']:g} to"
      f" {e['high']:g}"
      for cell, row in table.items() for name, e in row["expect"].items()
      if not e["ok"]]


def rows(table: dict) -> list[list[str]]:
  """The table as text: a header, then a row for each cell."""
  names = list(dict.fromkeys(n for r in table.values() for n in r["metrics"]))
  header = ["cell", "changes"]
  for name in names:
    header += [name] if name == "seconds" else [name, f"Δ {name}"]
  lines = [header]
  for cell, row in table.items():
    changes = ", ".join(f"{k}={v!r}" for k, v in row["changes"].items())
    line = [cell, changes or "(the baseline)"]
    for name in names:
      line.append(_text(row["metrics"].get(name)))
      if name != "seconds":
        line.append(_text(row["difference"].get(name)))
    lines.append(line)
  return lines


def _text(entry: dict | None) -> str:
  return str(Estimate(tuple(entry["values"]))) if entry else ""


def markdown(name: str, seeds: Sequence[int], table: dict) -> str:
  """The table with its provenance, for a README."""
  head, *body = rows(table)
  lines = [f"# {name}", "",
           f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), mean ± 95 %"
           " interval (Student's t); Δ is paired by seed against"
           f" `{next(iter(table))}`. Measured {time.strftime('%Y-%m-%d')} on"
           f" {platform.machine()}.", "",
           "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  lines += ["| " + " | ".join(line) + " |" for line in body]
  lines += ["", *(f"Unexpected: {s}." for s in surprises(table))]
  return "\n".join(lines).rstrip() + "\n"


def save(folder: pathlib.Path, stem: str, name: str, seeds: Sequence[int],
         table: dict) -> None:
  """Writes STEM.md and STEM.json."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f"{stem}.md").write_text(markdown(name, seeds, table))
  document = {"name": name, "seeds": list(seeds), "cells": table}
  (folder / f"{stem}.json").write_text(json.dumps(document, indent=2) + "\n")
