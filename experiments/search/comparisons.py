"""What many searches say: which way of thinking pays, for which model size.

Rows are those of `lm.evals.curves`, over the seeds of one size, with "size",
"parameters" and "budget" besides.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from lm.evals import curves
from lm.evals import trade
from lm.types import UserError

Row = Mapping[str, Any]
SEARCHES = ("tot_value", "depth_first", "best_first", "mcts")
GUIDED = ("depth_first", "best_first", "mcts")
# They know the answer: bounds, not methods.
BOUNDS = ("tot_oracle",)


def compare(sizes: Mapping[str, Sequence[Mapping[str, Any]]], *,
            samples: int = 10_000) -> dict[str, Any]:
  """Everything that there is to say, as plain JSON values.

  Args:
    sizes: the reports of each size, the smallest first; they fit together.
    samples: of each bootstrap.
  """
  tasks = next(iter(sizes.values()))[0]["tasks"]
  return {
      "sizes": {name: {"parameters": reports[0]["parameters"],
                       "seeds": [r["seed"] for r in reports]}
                for name, reports in sizes.items()},
      "tasks": {name: _task(name, sizes, samples) for name in tasks}}


def _task(name: str, sizes, samples: int) -> dict[str, Any]:
  rows, table = [], {}
  for size, reports in sizes.items():
    sections = [r["tasks"][name] for r in reports]
    outcomes = {m: [s["outcomes"][m] for s in sections]
                for m in sections[0]["outcomes"]}
    table[size] = outcomes
    rows += [{**row, "size": size, "parameters": reports[0]["parameters"]}
             for row in curves.ordered(curves.over_seeds(
                 [s["methods"] for s in sections], outcomes,
                 samples=samples))]
  with_outcomes = [{**row, "outcomes": table[row["size"]][row["name"]]}
                   for row in methods_only(rows)]
  about = next(iter(sizes.values()))[0]["tasks"][name]
  return {
      **{k: about[k] for k in ("task", "dials", "split", "overlap")},
      "problems": rows[0]["n"], "methods": rows,
      **worth(with_outcomes, samples=samples),
      "crossings": crossings(with_outcomes, samples=samples),
      "against_best_of_n": differences(
          rows, table, SEARCHES, "best_of_n", samples=samples),
      "against_step_beam": differences(
          rows, table, GUIDED, "tot_value", samples=samples)}


def methods_only(rows: Sequence[Row]) -> list[Row]:
  """Without the bounds."""
  return [row for row in rows if row["family"] not in BOUNDS]


def worth(rows: Sequence[Row], **kwargs) -> dict[str, Any]:
  """The trade of parameters for thinking of each family, or why there is none.

  Controls, which have one budget, are left out; `kwargs` are of `trade.fit`.
  """
  budgets: dict[str, set] = {}
  for r in rows:
    budgets.setdefault(r["family"], set()).add(r["budget"])
  try:
    found = trade.fits([r for r in rows if len(budgets[r["family"]]) > 1],
                       **kwargs)
  except UserError as e:
    return {"trade": {}, "trade_note": str(e)}
  order = list(curves.curves(rows))
  return {"trade": {f: dataclasses.asdict(found[f])
                    for f in sorted(found, key=order.index)},
          "trade_note": ""}


def crossings(rows: Sequence[Row], **kwargs) -> list[dict[str, Any]]:
  """Where the smallest model that thinks equals the largest that does not.

  For each family, beginning at greedy, a choice made beforehand; and for the
  best of all ("any"), which chooses by the outcomes that it is read from.
  `kwargs` are of `trade.crossing`.
  """
  parameters = {r["parameters"] for r in rows}
  small = [r for r in rows if r["parameters"] == min(parameters)]
  large = [r for r in rows if r["parameters"] == max(parameters)]
  greedy = [r for r in small if r["family"] == "greedy"]
  if len(parameters) < 2 or not greedy:
    return []
  found = []
  for family, mine in {**curves.curves(small), "any": small}.items():
    if family == "greedy":
      continue
    begun = mine if family == "any" else [*greedy, *mine]
    at = trade.crossing(begun, large, **kwargs)
    found.append({"family": family, "small": greedy[0]["size"],
                  "large": large[0]["size"],
                  "crossing": at and dataclasses.asdict(at)})
  return found


def differences(rows: Sequence[Row], table: Mapping[str, Any],
                families: Sequence[str], rival: str, **kwargs
                ) -> list[dict[str, Any]]:
  """Each search less its rival at the same budget, paired by seed and problem.

  Args:
    rows: of all sizes.
    table: outcomes [S, N] by size and by method.
    families: of the searches.
    rival: the family that they are held against.
    **kwargs: of `curves.bootstrap`.
  """
  found = []
  for a, b in _at_equal_budget(rows, families, rival):
    outcomes = table[a["size"]]
    mean, low, high = curves.difference(
        outcomes[a["name"]], outcomes[b["name"]], **kwargs)
    found.append({
        "size": a["size"], "budget": a["budget"], "family": a["family"],
        "rival": rival,
        "tokens": [a["generated_tokens"], b["generated_tokens"]],
        "flops": [a["flops"], b["flops"]],
        "accuracies": [a["accuracy"], b["accuracy"]],
        "mean": mean, "interval": [low, high],
        "verdict": "loses" if high < 0 else "wins" if low > 0 else "open"})
  return found


def _at_equal_budget(rows, families, rival) -> Iterator[tuple[Row, Row]]:
  for family in families:
    for a in rows:
      if a["family"] != family or a["budget"] is None:
        continue
      for b in rows:
        if (b["family"], b["size"], b["budget"]) == (
            rival, a["size"], a["budget"]):
          yield a, b
