"""The grid's findings as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.evals import plots

_HEADS = {"against_best_of_n": "Search less best of n at the same budget",
          "against_step_beam": "Guided search less the step beam at the same"
                               " budget"}


def markdown(found: Mapping[str, Any]) -> str:
  """All tables, a section for each task."""
  sizes = ", ".join(
      f"{name} ({about['parameters'] / 1e6:.2f}M parameters, seeds"
      f" {', '.join(map(str, about['seeds']))})"
      for name, about in found["sizes"].items())
  lines = [f"Models: {sizes}. Intervals: 95 %, bootstrap over seeds and"
           " problems (one seed: Wilson). Budgets are of generated tokens per"
           " problem; FLOPs are of all forward passes, value heads included."]
  for name, task in found["tasks"].items():
    lines += ["", f"## {name}", "", *_section(name, task)]
  return "\n".join(lines) + "\n"


def _section(name: str, task: Mapping[str, Any]) -> Iterator[str]:
  dials = "".join(f", {k} {v}" for k, v in task["dials"].items())
  yield (f"{task['problems']} problems of {task['task']}, split"
         f" {task['split']}{dials}.")
  if task["overlap"]:
    shares = ", ".join(f"{share:.0%} of those of size {size}" for size, share
                       in sorted(task["overlap"].items()))
    yield f"States that training may have met: {shares}."
  yield from ("", f"![Accuracy against FLOPs](frontier_{name}.png)", "",
              *_solved(task["methods"]), "", *_others(task["methods"]), "")
  yield from _trade(task)
  yield from _crossings(task["crossings"])
  for key, head in _HEADS.items():
    yield from _differences(head, task[key])


def _family(name: str) -> str:
  names = {"tot_oracle": "tree of thoughts, oracle (a bound)",
           "tot_self_evaluation": "tree of thoughts, self-evaluation",
           "tot_rollouts": "tree of thoughts, rollouts",
           "any": "the best of all"}
  return names.get(name) or plots.FAMILIES.get(name, ("", "", name))[2]


def _share(row: Mapping[str, Any]) -> str:
  low, high = row["interval"]
  return f"{100 * row['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(head)} |", "|---" * len(head) + "|",
          *(f"| {' | '.join(row)} |" for row in rows)]


def _solved(methods: Sequence[Mapping[str, Any]]) -> list[str]:
  """Solved at each budget, a line for each size and family."""
  budgets = sorted({m["budget"] for m in methods if m["budget"] is not None})
  cells: dict[tuple[str, str], dict[int, str]] = {}
  for m in methods:
    if m["budget"] is not None:
      cells.setdefault((m["family"], m["size"]), {})[m["budget"]] = _share(m)
  if not cells:
    return []
  rows = [[_family(family), size, *(mine.get(b, "") for b in budgets)]
          for (family, size), mine in cells.items()]
  return _table(["solved, %, at a budget of", "size",
                 *(f"{b} tokens" for b in budgets)], rows)


def _others(methods: Sequence[Mapping[str, Any]]) -> list[str]:
  """Those without a budget."""
  rows = [[m["label"], m["size"], _share(m), f"{m['generated_tokens']:,.0f}",
           f"{m['flops'] / 1e6:,.0f}"]
          for m in methods if m["budget"] is None]
  return _table(["no budget", "size", "solved, %", "tokens a problem",
                 "MFLOP a problem"], rows) if rows else []


def _range(interval: Sequence[float | None], form: str = ".2f") -> str:
  low, high = ("beyond" if x is None else format(x, form) for x in interval)
  return f"{low} to {high}"


def _trade(task: Mapping[str, Any]) -> Iterator[str]:
  if not task["trade"]:
    yield from (f"No trade of parameters for thinking: {task['trade_note']}.",
                "")
    return
  yield ("Doublings of thinking tokens that replace a doubling of parameters,"
         " from logit(accuracy) = a + b log2(parameters) + c log2(tokens);"
         " below 1 thinking is the cheaper:")
  yield ""
  yield from _table(
      ["method", "b", "c", "b / c", "95 % interval", "R²", "points"],
      [[_family(name), f"{t['per_parameters']:.2f}", f"{t['per_tokens']:.2f}",
        "thinking does not help" if t["worth"] is None else f"{t['worth']:.2f}",
        _range(t["interval"]), f"{t['r2']:.2f}", str(t["points"])]
       for name, t in task["trade"].items()])
  yield ""


def _crossings(crossings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  if not crossings:
    yield from ("No crossing: that takes two sizes, each with a greedy row.",
                "")
    return
  yield (f"FLOPs a problem at which {crossings[0]['small']} that thinks equals"
         f" {crossings[0]['large']} that does not, as a multiple of the"
         " latter's:")
  yield ""
  rows = []
  for c in crossings:
    at = c["crossing"]
    rows.append([_family(c["family"]), *(
        ("never", "", "") if at is None else
        (f"{at['ratio']:.2f}", _range(at["ratio_interval"]),
         f"{at['reached']:.0%}"))])
  yield from _table(["method", "multiple", "95 % interval",
                     "resamples that get there"], rows)
  yield ""


def _differences(head: str, found: Sequence[Mapping[str, Any]]
                 ) -> Iterator[str]:
  if not found:
    return
  lost = [d for d in found if d["verdict"] == "loses"]
  won = sum(d["verdict"] == "wins" for d in found)
  where = "; ".join(f"{_family(d['family'])}, {d['size']}, {d['budget']}"
                    for d in lost)
  yield (f"{head}, in points, paired by seed and problem: {won} of {len(found)}"
         f" win, {len(lost)} lose{f' ({where})' if lost else ''}, the rest is"
         " open.")
  yield ""
  yield from _table(
      ["method", "size", "budget", "tokens a problem", "points",
       "95 % interval", "verdict"],
      [[_family(d["family"]), d["size"], str(d["budget"]),
        f"{d['tokens'][0]:,.0f} and {d['tokens'][1]:,.0f}",
        f"{100 * d['mean']:+.1f}",
        _range([100 * x for x in d["interval"]], "+.1f"), d["verdict"]]
       for d in found])
  yield ""
