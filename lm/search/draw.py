"""Draws a search: a tree of thoughts as one self-contained SVG.

Time runs from left to right, a column for each depth. Every distinct thought is
one line with the evaluator's opinion of it. What would only repeat is folded: a
thought written twice is written once with its count, thoughts that merge into
another's state become a dashed edge to it, and the least promising of a crowded
column become "and n more".
"""

from collections.abc import Mapping
import dataclasses
import html
import math
import re
from typing import Any

from lm.search.tree import Result
from lm.types import UserError

# Okabe and Ito's palette, safe for colour-blind readers; text is darkened.
COLOURS = {"path": "#007a5a", "kept": "#0072b2", "pruned": "#8a8f98",
           "unreadable": "#c4500a", "merged": "#a3669a"}
_INK, _MUTED, _RULE = "#1c1e21", "#6b7280", "#d8dbe0"
_MONO = ("ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',"
         "'Liberation Mono',monospace")
_SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif"
_LINE, _CHAR, _SIZE = 23.0, 7.0, 11.5  # Row height, glyph width, font size.
_GAP, _METER, _PAD, _HEAD = 52.0, 62.0, 8.0, 30.0


@dataclasses.dataclass
class _Row:
  """One line of the drawing.

  Attributes:
    parent: the row that it continues; None for the question.
    status: 'path' or as of a node; 'more' for what was folded away.
    text: what is written.
    count: how many sampled thoughts it stands for.
    number: the evaluator's opinion, None where it has none.
    title: shown when pointed at.
  """
  parent: "_Row | None"
  status: str
  text: str
  count: int = 1
  number: float | None = None
  title: str = ""
  x: float = 0.0
  y: float = 0.0
  width: float = 0.0


def tree(
    result: Result | Mapping[str, Any], *, prompt: str = "",
    correct: bool | None = None, opinion: str = "value", max_rows: int = 26,
) -> str:
  """The SVG of a search's transcript.

  Args:
    result: of a tree search, or its `to_dict()`.
    prompt: the question, drawn as the root.
    correct: what the grader said of the answer afterwards, if it was asked.
    opinion: 'value' shows the probability of success that the value head
      gives, 'score' the evaluator's bare number, 'none' nothing.
    max_rows: lines of a column; the worst pruned thoughts beyond are folded.

  Raises:
    UserError: the result holds no tree, or `opinion` is unknown.
  """
  if opinion not in ("value", "score", "none"):
    raise UserError(f"opinion={opinion!r}: use value, score or none")
  if isinstance(result, Result):
    result = result.to_dict()
  if not result["nodes"]:
    raise UserError("this result holds no tree: only tree_of_thoughts leaves"
                    " one, not greedy or sampling")
  root = _Row(None, "path", prompt or "question")
  columns, merges = _columns(result, root, opinion, max_rows)
  depth, answer = len(columns), _answer(result, columns, correct)
  columns = [[root], *columns, *([[answer]] if answer else [])]
  width, height = _place(columns)
  names = ["question", *(f"thought {d + 1}" for d in range(depth)), "answer"]
  return _svg(columns, names, merges, width, height, prompt, opinion)


# --- What there is to draw ---------------------------------------------------


def _columns(result, root: _Row, opinion: str, max_rows: int):
  """The rows of each depth, and (parent row, row) of each merge."""
  nodes, path = result["nodes"], set(result["path"])
  rows: dict[int, _Row] = {}  # By node.
  columns: list[list[_Row]] = []
  merges: set[tuple[int, int]] = set()
  links: list[tuple[_Row, _Row]] = []
  for depth in range(1, max(n["depth"] for n in nodes) + 1):
    here = [i for i, n in enumerate(nodes) if n["depth"] == depth]
    parent_of = {i: root if nodes[i]["parent"] is None
                 else rows[nodes[i]["parent"]] for i in here}
    survivors = {_key(nodes[i]): i for i in here
                 if nodes[i]["status"] in ("kept", "pruned")}
    column: list[_Row] = []
    folded: dict[tuple, _Row] = {}
    for i in here:
      node = nodes[i]
      if node["status"] == "merged":
        continue
      status = "path" if i in path else node["status"]
      text = " ".join(node["text"].split()) or "(nothing)"
      key = (id(parent_of[i]), text if status == "unreadable" else i)
      if key in folded:
        folded[key].count += 1
        rows[i] = folded[key]
        continue
      number = _number(node, opinion)
      rows[i] = folded[key] = _Row(
          parent_of[i], status, text, number=number, title=_title(node))
      column.append(rows[i])
    for i in here:
      if nodes[i]["status"] != "merged":
        continue
      target = survivors.get(_key(nodes[i]))
      if target is None:
        continue
      rows[i] = rows[target]
      rows[i].count += 1
      pair = (id(parent_of[i]), id(rows[i]))
      if rows[i].parent is not parent_of[i] and pair not in merges:
        merges.add(pair)
        links.append((parent_of[i], rows[i]))
    column = _sorted(column, columns[-1] if columns else [root])
    columns.append(_fold(column, max_rows))
  drawn = {id(row) for column in columns for row in column}
  return columns, [(a, b) for a, b in links if id(b) in drawn]


def _key(node) -> Any:
  state = node["state"]
  return tuple(state) if isinstance(state, list) else state


def _number(node, opinion: str) -> float | None:
  if node["status"] == "unreadable" or opinion == "none":
    return None
  if opinion == "value":
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, node["value"]))))
  return node["score"]


def _title(node) -> str:
  return (f"{node['text'].strip()}\n{node['status']}; log-probability of the"
          f" path {node['log_prob']:.2f}, value {node['value']:.2f} (logit),"
          f" score {node['score']:.2f}")


def _sorted(column: list[_Row], before: list[_Row]) -> list[_Row]:
  """By parent, then path and kept first, then as promising."""
  place = {id(row): i for i, row in enumerate(before)}
  rank = {"path": 0, "kept": 0, "pruned": 1, "unreadable": 2}
  return sorted(column, key=lambda r: (
      place[id(r.parent)], rank[r.status],
      -(r.number if r.number is not None else -math.inf)))


def _fold(column: list[_Row], max_rows: int) -> list[_Row]:
  """Folds the worst pruned thoughts of a crowded column, by parent."""
  excess = len(column) - max_rows
  if excess <= 0:
    return column
  spare = [r for r in column if r.status in ("pruned", "unreadable")]
  spare.sort(key=lambda r: -math.inf if r.number is None else r.number)
  # Every parent with folded thoughts gets a row that says so.
  out: set[int] = set()
  parents: set[int] = set()
  for row in spare:
    if len(out) - len(parents) >= excess:
      break
    out.add(id(row))
    parents.add(id(row.parent))
  kept: list[_Row] = []
  gone: dict[int, list[_Row]] = {}
  for i, row in enumerate(column):
    if id(row) in out:
      gone.setdefault(id(row.parent), []).append(row)
    else:
      kept.append(row)
    last = i + 1 == len(column) or column[i + 1].parent is not row.parent
    if last and id(row.parent) in gone:
      mine = gone[id(row.parent)]
      total = sum(r.count for r in mine)
      kept.append(_Row(row.parent, "more", f"and {total} more", count=total,
                       title="\n".join(r.text for r in mine)))
  return kept


def _answer(result, columns, correct: bool | None) -> _Row | None:
  """The last column: what the model answered from the end of the path."""
  path = result["path"]
  if not path:
    return None
  last = next((r for r in columns[-1] if r.status == "path"), None)
  text = result["answer"] or "(no answer)"
  status = {None: "path", True: "right", False: "wrong"}[correct]
  return _Row(last, status, text, title=result["text"].strip())


# --- Where it goes ------------------------------------------------------------


def _place(columns: list[list[_Row]]) -> tuple[float, float]:
  """Sets every row's place; returns the size of the drawing."""
  height = max(map(len, columns)) * _LINE
  x = 1.0
  for column in columns:
    width = max(_width(row) for row in column)
    top = _HEAD + (height - len(column) * _LINE) / 2
    for i, row in enumerate(column):
      row.x, row.y = x, top + (i + 0.5) * _LINE
      row.width = width
    if len(column) == 1 and column[0].parent:
      column[0].y = column[0].parent.y
    x += width + _GAP
  return x - _GAP + 2, _HEAD + height + _LINE + 14


def _width(row: _Row) -> float:
  meter = _METER if row.number is not None else 0.0
  return len(_shown(row)) * _CHAR + meter + 2 * _PAD


def _shown(row: _Row) -> str:
  text = row.text if len(row.text) <= 44 else row.text[:43] + "…"
  mark = {"right": "  ✓", "wrong": "  ✗"}.get(row.status, "")
  times = f"  ×{row.count}" if row.count > 1 and row.status != "more" else ""
  return text + times + mark


# --- How it looks -------------------------------------------------------------


def _svg(columns, names, merges, width, height, prompt, opinion) -> str:
  rows = [row for column in columns for row in column]
  edges = [_edge(row.parent, row, row.status) for row in rows if row.parent]
  edges.sort(key=lambda e: e[0])  # The path is drawn last, on top.
  parts = [text for _, text in edges]
  parts = [_edge(a, b, "merged")[1] for a, b in merges] + parts
  parts += [_draw(row, opinion) for row in rows]
  for column, name in zip(columns, names):
    parts.append(
        f'<text x="{column[0].x + _PAD:.1f}" y="13" font-family="{_SANS}"'
        f' font-size="10.5" letter-spacing=".04em" fill="{_MUTED}">{name}'
        "</text>")
  parts.append(_legend(height - 12, opinion))
  width = max(width, 900.0)
  label = _escape(f"Search tree of: {prompt}")
  return (
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f}'
      f' {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img"'
      f' aria-label="{label}" style="background:#fff;max-width:100%;'
      f'height:auto" font-family="{_MONO}" font-size="{_SIZE}">\n'
      + "\n".join(parts) + "\n</svg>\n")


def _edge(a: _Row, b: _Row, status: str) -> tuple[int, str]:
  rank = {"path": 2, "right": 2, "wrong": 2, "kept": 1}.get(status, 0)
  look = {
      2: f'stroke="{COLOURS["path"]}" stroke-width="2.6"',
      1: f'stroke="{COLOURS["kept"]}" stroke-width="1.4" opacity=".75"',
      0: f'stroke="{_RULE}" stroke-width="1.1"',
  }[rank]
  if status == "merged":
    look = (f'stroke="{COLOURS["merged"]}" stroke-width="1"'
            ' stroke-dasharray="3 3" opacity=".55"')
  x0, x1 = a.x + a.width, b.x
  bend = (x1 - x0) / 2
  return rank, (f'<path d="M{x0:.1f} {a.y:.1f}C{x0 + bend:.1f} {a.y:.1f}'
                f' {x1 - bend:.1f} {b.y:.1f} {x1:.1f} {b.y:.1f}" fill="none"'
                f" {look}/>")


def _draw(row: _Row, opinion: str) -> str:
  colour = COLOURS.get(row.status, COLOURS["path"])
  fill, stroke, ink, weight, dim = {
      "path": ("#e3f3ee", colour, _INK, 600, "#3f6b5e"),
      "right": ("#e3f3ee", colour, _INK, 600, _MUTED),
      "wrong": ("#fbe9e0", COLOURS["unreadable"], _INK, 600, _MUTED),
      "kept": ("#e8f2f9", colour, _INK, 400, "#5b7284"),
      "pruned": ("none", "none", "#5f6670", 400, "#8a8f98"),
      "unreadable": ("none", "none", colour, 400, colour),
      "more": ("none", "none", _MUTED, 400, _MUTED),
  }[row.status]
  parts = [f"<g><title>{_escape(row.title)}</title>"] if row.title else [
      "<g>"]
  if fill != "none":
    parts.append(
        f'<rect x="{row.x:.1f}" y="{row.y - _LINE / 2 + 2:.1f}"'
        f' width="{row.width:.1f}" height="{_LINE - 4:.1f}" rx="4"'
        f' fill="{fill}" stroke="{stroke}"/>')
  style = ' font-style="italic"' if row.status in ("more", "unreadable") else ""
  shown = _shown(row)
  cut = " (" if row.status not in ("right", "wrong") else "\n"
  head, bracket, tail = shown.partition(cut)
  head, tail = _escape(head), _escape(bracket + tail)
  tail = f'<tspan fill="{dim}" font-weight="400">{tail}</tspan>' if tail else ""
  parts.append(
      f'<text x="{row.x + _PAD:.1f}" y="{row.y + 4:.1f}" fill="{ink}"'
      f' font-weight="{weight}" xml:space="preserve"{style}>{head}{tail}'
      "</text>")
  if row.number is not None:
    parts.append(_meter(row, colour, opinion))
  return "".join(parts) + "</g>"


def _meter(row: _Row, colour: str, opinion: str) -> str:
  """A small bar and the number, at the row's right end."""
  right = row.x + row.width - _PAD
  if opinion != "value":
    return (f'<text x="{right:.1f}" y="{row.y + 4:.1f}" text-anchor="end"'
            f' fill="{colour}">{row.number:.2f}</text>')
  left = right - _METER + 10
  return (
      f'<rect x="{left:.1f}" y="{row.y - 2:.1f}" width="22" height="4" rx="2"'
      f' fill="{_RULE}"/><rect x="{left:.1f}" y="{row.y - 2:.1f}"'
      f' width="{max(1.0, 22 * row.number):.1f}" height="4" rx="2"'
      f' fill="{colour}"/><text x="{right:.1f}" y="{row.y + 4:.1f}"'
      f' text-anchor="end" font-size="10.5" fill="{colour}">'
      f"{_percent(row.number)}</text>")


def _percent(p: float | None) -> str:
  if p is None:
    return ""
  if p < 0.005:
    return "0%"
  return "100%" if p >= 0.995 else f"{100 * p:.0f}%"


# XML has no way to write these, and an untrained model writes everything.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escape(text: str) -> str:
  return html.escape(_NOT_XML.sub("\ufffd", text))


def _legend(y: float, opinion: str) -> str:
  parts, x = [], _PAD
  entries = [("path", "chosen"), ("kept", "kept"), ("pruned", "pruned"),
             ("unreadable", "unreadable"),
             ("merged", "merges into a state already there"),
             ("", "×n: written n times")]
  if opinion == "value":
    entries.append(("", "bar: the value head's probability of success"))
  for name, text in entries:
    if name:
      dash = ' stroke-dasharray="3 3"' if name == "merged" else ""
      parts.append(f'<path d="M{x:.0f} {y:.1f}h18" stroke="{COLOURS[name]}"'
                   f' stroke-width="2.4"{dash}/>')
      x += 24
    parts.append(
        f'<text x="{x:.0f}" y="{y + 3.5:.1f}" font-family="{_SANS}"'
        f' font-size="10.5" fill="{_MUTED}">{text}</text>')
    x += 5.6 * len(text) + 24
  return "".join(parts)
