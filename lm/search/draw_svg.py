"""How a drawn search looks: rows and edges as one self-contained SVG."""

import dataclasses
import html
import re

# Okabe and Ito's palette, safe for colour-blind readers; text is darkened.
COLOURS = {"path": "#007a5a", "kept": "#0072b2", "pruned": "#8a8f98",
           "unreadable": "#c4500a", "merged": "#a3669a"}
_INK, _MUTED, _RULE = "#1c1e21", "#6b7280", "#d8dbe0"
_MONO = ("ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',"
         "'Liberation Mono',monospace")
SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif"
LINE, _CHAR, _SIZE = 23.0, 7.0, 11.5  # Row height, glyph width, font size.
_METER, _PAD = 62.0, 8.0


@dataclasses.dataclass(eq=False)
class Row:
  """One line of the drawing.

  Attributes:
    parent: the row that it continues; None for the question.
    status: 'path' or as of a node; 'more' for what was folded away; 'right' or
      'wrong' for a graded answer.
    text: what is written.
    depth: its column.
    count: how many sampled thoughts it stands for.
    visits: how often the search came by.
    number: the evaluator's opinion, None where it has none.
    title: shown when pointed at.
    x, y, width: its place, of the left end's middle.
  """
  parent: "Row | None"
  status: str
  text: str
  depth: int = 0
  count: int = 1
  visits: int = 0
  number: float | None = None
  title: str = ""
  x: float = 0.0
  y: float = 0.0
  width: float = 0.0


def width(row: Row) -> float:
  """What a row needs."""
  meter = _METER if row.number is not None else 0.0
  return len(_shown(row) + _marks(row)) * _CHAR + meter + 2 * _PAD


def _shown(row: Row) -> str:
  if row.status == "more":
    return f"and {row.count} more"
  return row.text if len(row.text) <= 44 else row.text[:43] + "…"


def _marks(row: Row) -> str:
  """What is written small after the thought."""
  times = f"  ×{row.count}" if row.count > 1 and row.status != "more" else ""
  visits = f"  n={row.visits}" if row.visits > 1 else ""
  return times + visits + {"right": "  ✓", "wrong": "  ✗"}.get(row.status, "")


def svg(
    columns: list[list[Row]], names: list[str], merges: list[tuple[Row, Row]],
    size: tuple[float, float], *, prompt: str, opinion: str,
) -> str:
  """The SVG of rows that have their places.

  Args:
    columns: the rows, a list for each column.
    names: of the columns.
    merges: (from, to) of the dashed edges.
    size: width and height of the drawing.
    prompt: said to those who cannot see it.
    opinion: as of `draw.tree`.
  """
  rows = [row for column in columns for row in column]
  edges = [_edge(row.parent, row, row.status) for row in rows if row.parent]
  edges.sort(key=lambda e: e[0])  # The path is drawn last, on top.
  parts = [text for _, text in edges]
  parts = [_edge(a, b, "merged")[1] for a, b in merges] + parts
  parts += [_draw(row, opinion) for row in rows]
  for column, name in zip(columns, names):
    parts.append(
        f'<text x="{column[0].x + _PAD:.1f}" y="13" font-family="{SANS}"'
        f' font-size="10.5" letter-spacing=".04em" fill="{_MUTED}">{name}'
        "</text>")
  legend, end = _legend(size[1] - 12, opinion, any(r.visits > 1 for r in rows))
  parts.append(legend)
  width, height = max(size[0], end), size[1]
  label = escape(f"Search tree of: {prompt}")
  return (
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f}'
      f' {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img"'
      f' aria-label="{label}" style="background:#fff;max-width:100%;'
      f'height:auto" font-family="{_MONO}" font-size="{_SIZE}">\n'
      + "\n".join(parts) + "\n</svg>\n")


def _edge(a: Row, b: Row, status: str) -> tuple[int, str]:
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
  # A merge may lead back to an earlier column: then it turns on its way.
  bend = (x1 - x0) / 2 if x1 > x0 else 40.0
  return rank, (f'<path d="M{x0:.1f} {a.y:.1f}C{x0 + bend:.1f} {a.y:.1f}'
                f' {x1 - bend:.1f} {b.y:.1f} {x1:.1f} {b.y:.1f}" fill="none"'
                f" {look}/>")


def _draw(row: Row, opinion: str) -> str:
  colour = COLOURS.get(row.status, COLOURS["path"])
  fill, stroke, ink, weight, dim = {
      "path": ("#e3f3ee", colour, _INK, 600, "#3f6b5e"),
      "right": ("#e3f3ee", colour, _INK, 600, _MUTED),
      "wrong": ("#fbe9e0", COLOURS["unreadable"], _INK, 600, _MUTED),
      "kept": ("#e8f2f9", colour, _INK, 400, "#5b7284"),
      "pruned": ("none", "none", "#5f6670", 400, "#8a8f98"),
      "merged": ("none", "none", colour, 400, colour),
      "unreadable": ("none", "none", colour, 400, colour),
      "more": ("none", "none", _MUTED, 400, _MUTED),
  }[row.status]
  parts = [f"<g><title>{escape(row.title)}</title>"] if row.title else [
      "<g>"]
  if fill != "none":
    parts.append(
        f'<rect x="{row.x:.1f}" y="{row.y - LINE / 2 + 2:.1f}"'
        f' width="{row.width:.1f}" height="{LINE - 4:.1f}" rx="4"'
        f' fill="{fill}" stroke="{stroke}"/>')
  style = ' font-style="italic"' if row.status in ("more", "unreadable") else ""
  cut = " (" if row.status not in ("right", "wrong") else "\n"
  head, bracket, tail = _shown(row).partition(cut)
  head, tail = escape(head), escape(bracket + tail)
  tail = f'<tspan fill="{dim}" font-weight="400">{tail}</tspan>' if tail else ""
  if marks := _marks(row):
    tail += f'<tspan fill="{dim}" font-size="10.5">{marks}</tspan>'
  parts.append(
      f'<text x="{row.x + _PAD:.1f}" y="{row.y + 4:.1f}" fill="{ink}"'
      f' font-weight="{weight}" xml:space="preserve"{style}>{head}{tail}'
      "</text>")
  if row.number is not None:
    parts.append(_meter(row, colour, opinion))
  return "".join(parts) + "</g>"


def _meter(row: Row, colour: str, opinion: str) -> str:
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


def escape(text: str) -> str:
  return html.escape(_NOT_XML.sub("\ufffd", text))


def _legend(y: float, opinion: str, visits: bool) -> tuple[str, float]:
  """The legend, and where it ends."""
  parts, x = [], _PAD
  entries = [("path", "chosen"), ("kept", "kept"), ("pruned", "pruned"),
             ("unreadable", "unreadable"),
             ("merged", "merges into a state already there"),
             ("", "×n: written n times")]
  if visits:
    entries.append(("", "n=v: visited v times"))
  if opinion == "value":
    entries.append(("", "bar: the value head's probability of success"))
  for name, text in entries:
    if name:
      dash = ' stroke-dasharray="3 3"' if name == "merged" else ""
      parts.append(f'<path d="M{x:.0f} {y:.1f}h18" stroke="{COLOURS[name]}"'
                   f' stroke-width="2.4"{dash}/>')
      x += 24
    parts.append(
        f'<text x="{x:.0f}" y="{y + 3.5:.1f}" font-family="{SANS}"'
        f' font-size="10.5" fill="{_MUTED}">{text}</text>')
    x += 5.6 * len(text) + 24
  return "".join(parts), x
