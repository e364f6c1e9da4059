"""Draws a search: a tree of thoughts as one self-contained SVG.

Time runs from left to right, a column for each depth. Every distinct thought is
one line with the evaluator's opinion of it. What would only repeat is folded: a
thought written twice is written once with its count, thoughts that merge into
another's state become a dashed edge to it, and the least promising of a crowded
column become "and n more", with all that continues them.
"""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

from lm.search import draw_svg
from lm.search.draw_svg import COLOURS, LINE, Row
from lm.search.result import Result
from lm.types import UserError

__all__ = ["COLOURS", "tree"]

_GAP, _HEAD = 52.0, 30.0
_OPINIONS = ("value", "score", "none")
Nodes = Sequence[Mapping[str, Any]]


def tree(
    result: Result | Mapping[str, Any], *, prompt: str = "",
    correct: bool | None = None, opinion: str = "value", max_rows: int = 26,
) -> str:
  """The SVG of a search's transcript.

  Args:
    result: of a tree search, or its `to_dict()`; nodes in any order.
    prompt: the question, drawn as the root.
    correct: what the grader said of the answer afterwards, if it was asked.
    opinion: 'value' shows the probability of success that the value head
      gives, 'score' the evaluator's bare number, 'none' nothing.
    max_rows: lines of a column; the worst thoughts beyond are folded.

  Raises:
    UserError: the result holds no tree, or `opinion` is unknown.
  """
  if opinion not in _OPINIONS:
    raise UserError(f"opinion={opinion!r}: use value, score or none")
  if isinstance(result, Result):
    result = result.to_dict()
  nodes, path = result["nodes"], result["path"]
  if not nodes:
    raise UserError("this result holds no tree: only tree searches leave one,"
                    " not greedy, sampling or beams of tokens")
  root = Row(None, "path", prompt or "question")
  rows, merges = _rows(nodes, path, root, opinion)
  by_depth = _columns(rows, root, max_rows)
  columns = [[root], *by_depth.values()]
  names = ["question", *(f"thought {depth}" for depth in by_depth)]
  if path:
    columns.append([_answer(result, rows[path[-1]], correct)])
    names.append("answer")
  drawn = {row for column in columns for row in column}
  merges = [(a, b) for a, b in merges if a in drawn and b in drawn]
  return draw_svg.svg(columns, names, merges, _place(columns), prompt=prompt,
                      opinion=opinion)


# --- What there is to draw ---------------------------------------------------


def _rows(nodes: Nodes, path: Sequence[int], root: Row, opinion: str
          ) -> tuple[list[Row], list[tuple[Row, Row]]]:
  """The row that stands for each node, and (parent row, row) of each merge.

  Nodes may come in any order: a best-first search goes back to shallow ones,
  and what a node merges into may have been written after it.
  """
  stands = _stands(nodes)
  made = {i: Row(None, nodes[i]["status"],
                 " ".join(nodes[i]["text"].split()) or "(nothing)",
                 depth=nodes[i]["depth"], count=0,
                 visits=nodes[i].get("visits") or 0,
                 number=_number(nodes[i], opinion), title=_title(nodes[i]))
          for i in sorted(set(stands))}
  rows = [made[i] for i in stands]
  merges: dict[tuple[Row, Row], None] = {}  # An ordered set.
  for i, (node, row) in enumerate(zip(nodes, rows)):
    row.count += 1
    if stands[i] == i:
      row.parent = root if node["parent"] is None else rows[node["parent"]]
  for node, row in zip(nodes, rows):
    parent = root if node["parent"] is None else rows[node["parent"]]
    if row.parent is not parent:
      merges[parent, row] = None
  for i in path:
    rows[i].status = "path"
  return rows, list(merges)


def _stands(nodes: Nodes) -> list[int]:
  """For each node the one that is drawn in its place: itself, mostly.

  A merged node is drawn as the node whose state it shares, and as itself if
  there is none; a sibling that wrote the same unreadable text as the first.
  """
  of_state: dict[str, list[int]] = {}
  for i, node in enumerate(nodes):
    if node["status"] in ("kept", "pruned"):
      of_state.setdefault(_key(node), []).append(i)
  stands = list(range(len(nodes)))
  for i, node in enumerate(nodes):
    if node["status"] == "merged":
      # Several may share it where the search did not look for merges.
      _, stands[i] = min((_distance(node, nodes[j]), j)
                         for j in of_state.get(_key(node), [i]))
  first: dict[tuple, int] = {}
  for i, node in enumerate(nodes):
    if node["status"] == "unreadable":
      parent = node["parent"]
      key = (None if parent is None else stands[parent],
             " ".join(node["text"].split()))
      stands[i] = first.setdefault(key, i)
  return stands


def _distance(merged: Mapping[str, Any], target: Mapping[str, Any]
              ) -> tuple[bool, bool, bool]:
  """Orders what a node may have merged into, the likeliest first."""
  return (target["depth"] != merged["depth"], target["status"] != "kept",
          target["parent"] != merged["parent"])


def _key(node: Mapping[str, Any]) -> str:
  """Of a state, the same before and after a journey through JSON."""
  return json.dumps(node["state"], sort_keys=True, default=repr)


def _number(node: Mapping[str, Any], opinion: str) -> float | None:
  number = node.get(opinion)  # None for opinion 'none', too.
  if node["status"] == "unreadable" or number is None or math.isnan(number):
    return None
  if opinion == "value":
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, number))))
  return number


def _title(node: Mapping[str, Any]) -> str:
  said = [node["status"]]
  for key, text in (("log_prob", "log-probability of the path {:.2f}"),
                    ("value", "value {:.2f} (logit)"),
                    ("score", "score {:.2f}")):
    if node.get(key) is not None:
      said.append(text.format(node[key]))
  if visits := node.get("visits"):
    total = node.get("total") or 0.0
    said.append(f"{visits} visits, total {total:.2f} (mean"
                f" {total / visits:.2f})")
  if node.get("prior"):
    said.append(f"prior {node['prior']:.2f}")
  return f"{node['text'].strip()}\n{'; '.join(said)}"


def _answer(result, last: Row, correct: bool | None) -> Row:
  """What the model answered from the end of the path."""
  text = result["answer"] or "(no answer)"
  status = {None: "path", True: "right", False: "wrong"}[correct]
  return Row(last, status, text, title=result["text"].strip())


# --- Which of it, and in which order -----------------------------------------


def _columns(rows: Sequence[Row], root: Row, max_rows: int
             ) -> dict[int, list[Row]]:
  """The rows of each depth that has any, sorted and folded."""
  by_depth: dict[int, list[Row]] = {}
  for row in sorted(dict.fromkeys(rows), key=lambda r: r.depth):
    by_depth.setdefault(row.depth, []).append(row)
  expanded = {row.parent for row in rows}
  folded: dict[Row | None, Row] = {}  # Into which "and n more" a row went.
  before = [root]
  for depth, column in by_depth.items():
    column = [row for row in column if not _inherits(row, folded)]
    column = _sorted(column, before)
    before = by_depth[depth] = _fold(column, max_rows, expanded, folded)
  for column in by_depth.values():
    for row in column:
      row.parent = folded.get(row.parent, row.parent)
  return {depth: column for depth, column in by_depth.items() if column}


def _inherits(row: Row, folded: dict[Row | None, Row]) -> bool:
  """Folds a row whose parent is folded, unless the answer goes through it."""
  if row.parent not in folded or row.status == "path":
    return False
  _absorb(folded[row.parent], row, folded)
  return True


def _absorb(more: Row, row: Row, folded: dict[Row | None, Row]) -> None:
  more.count += row.count
  more.title = f"{more.title}\n{row.text}".strip()
  folded[row] = more


def _sorted(column: list[Row], before: list[Row]) -> list[Row]:
  """By parent, then path and kept first, then as promising."""
  place: dict[Row | None, int] = {row: i for i, row in enumerate(before)}
  rank = {"path": 0, "kept": 0, "pruned": 1, "merged": 2, "unreadable": 2}
  return sorted(column, key=lambda r: (
      place.get(r.parent, len(before)), rank[r.status], -_promise(r)))


def _promise(row: Row) -> float:
  return -math.inf if row.number is None else row.number


def _fold(column: list[Row], max_rows: int, expanded: set,
          folded: dict[Row | None, Row]) -> list[Row]:
  """Folds the worst thoughts of a crowded column, by parent.

  First what was pruned; of what was kept first what led no further, then what
  was visited least.
  """
  excess = len(column) - max_rows
  spare = sorted((r for r in column if r.status != "path"), key=lambda r: (
      r.status == "kept", r in expanded, r.visits, _promise(r)))
  # Every parent with folded thoughts gets a row that says so.
  more: dict[Row | None, Row] = {}
  out: set[Row] = set()
  for row in spare:
    if len(out) - len(more) >= excess:
      break
    out.add(row)
    into = more.setdefault(
        row.parent, Row(row.parent, "more", "", depth=row.depth, count=0))
    _absorb(into, row, folded)
  shown: list[Row] = []
  last = {row.parent: row for row in column}
  for row in column:
    if row not in out:
      shown.append(row)
    if last[row.parent] is row and row.parent in more:
      shown.append(more[row.parent])
  return shown


# --- Where it goes ------------------------------------------------------------


def _place(columns: list[list[Row]]) -> tuple[float, float]:
  """Sets every row's place; returns the size of the drawing."""
  height = max(map(len, columns)) * LINE
  x, before = 1.0, [columns[0][0]]
  for column in columns:
    width = max(draw_svg.width(row) for row in column)
    top = _HEAD + (height - len(column) * LINE) / 2
    for i, row in enumerate(column):
      row.x, row.y = x, top + (i + 0.5) * LINE
      row.width = width
    if len(column) == 1 and column[0].parent in before:
      column[0].y = column[0].parent.y
    x, before = x + width + _GAP, column
  return x - _GAP + 2, _HEAD + height + LINE + 14
