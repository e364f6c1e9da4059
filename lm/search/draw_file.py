"""Draws the searches that lie in a file, as an SVG or a page of its own."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from lm.search import draw
from lm.search.draw_svg import SANS, escape
from lm.types import UserError

_NO_TREE = ("no tree in it: give a search's report.json, or a Result.to_dict()"
            " as JSON or JSONL")
_STATUSES = ("kept", "pruned", "merged", "unreadable")
_NUMBERS = ("depth", "log_prob", "value", "score", "visits", "total", "prior")
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 {sans}; color: #1c1e21; margin: 2rem; }}
h1 {{ font-size: 1.15rem; margin: 0 0 .2rem; }}
p {{ color: #6b7280; margin: 0 0 1.2rem; }}
.tree {{ overflow-x: auto; }}
.tree svg {{ max-width: none !important; }}
pre {{ background: #f5f6f8; border-radius: 6px; padding: 1rem;
  margin: 1.2rem 0 0; white-space: pre-wrap; }}
</style>
<h1>{title}</h1>
<p>{about}</p>
<div class="tree">
{svg}</div>
<pre>{text}</pre>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Transcript:
  """A search's result as plain JSON values, with what is known around it.

  Attributes:
    result: as of `Result.to_dict()`.
    prompt: the question, where it was written down.
    correct: what the grader said, where it was asked.
  """
  result: Mapping[str, Any]
  prompt: str = ""
  correct: bool | None = None


def read(path: str | os.PathLike) -> list[Transcript]:
  """The searches of a report.json, a `Result.to_dict()`, or a JSONL of either.

  Raises:
    UserError: a file that cannot be read, is not JSON, or holds no tree, or a
      broken one.
  """
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"{path} cannot be read: {e}") from e
  found = [t for value in _values(text, path) for t in _transcripts(value)]
  if not any(t.result["nodes"] for t in found):
    raise UserError(f"{path}: {_NO_TREE}")
  for i, transcript in enumerate(found):
    if fault := _fault(transcript.result):
      raise UserError(f"{path}: search {i} is broken: {fault}")
  return found


def _values(text: str, path: str | os.PathLike) -> list[Any]:
  """The JSON values of a text: the whole of it, or one a line."""
  try:
    return [json.loads(text)]
  except ValueError as e:
    fault = f"{path}: not JSON: {e}"
  found: list[Any] = []
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      found.append(json.loads(line))
    except ValueError as e:
      # It is meant to be a JSONL only if it begins like one.
      raise UserError(f"{path}:{number}: not JSON: {e}" if found else fault
                      ) from e
  if not found:
    raise UserError(fault)
  return found


def _transcripts(value: Any) -> Iterator[Transcript]:
  """Every result in a JSON value of one of the shapes that are written."""
  if isinstance(value, list):
    for item in value:
      yield from _transcripts(item)
  elif isinstance(value, dict):
    if isinstance(value.get("trees"), list):
      yield from _transcripts(value["trees"])
    elif isinstance(result := value.get("result", value), dict) and isinstance(
        result.get("nodes"), list):
      correct = value.get("correct")
      yield Transcript(result, str(value.get("prompt") or ""),
                       None if correct is None else bool(correct))


def _fault(result: Mapping[str, Any]) -> str | None:
  """What is wrong with a tree, or None."""
  nodes = result["nodes"]

  def is_node(i: Any) -> bool:
    return isinstance(i, int) and 0 <= i < len(nodes)

  for key in ("answer", "text", "path"):
    if key not in result:
      return f"it has no {key!r}"
  if not isinstance(result["answer"], str | None):
    return f"its answer is no text: {result['answer']!r}"
  if not isinstance(result["text"], str):
    return f"its text is no text: {result['text']!r}"
  cost = result.get("cost") or {}
  if not isinstance(cost, dict) or not all(
      isinstance(v, int | float) for v in cost.values()):
    return "its cost is not made of numbers"
  for i, node in enumerate(nodes):
    if not isinstance(node, dict):
      return f"node {i} is not an object"
    for key in ("parent", "depth", "text", "state", "status"):
      if key not in node:
        return f"node {i} has no {key!r}"
    if not isinstance(node["text"], str):
      return f"the text of node {i} is no text: {node['text']!r}"
    for key in _NUMBERS:
      if not isinstance(node.get(key), int | float | None):
        return f"the {key} of node {i} is no number: {node[key]!r}"
    if node["status"] not in _STATUSES:
      return f"node {i} has an unknown status, {node['status']!r}"
  for i, node in enumerate(nodes):
    parent = node["parent"]
    if parent is not None and not is_node(parent):
      return f"node {i} continues node {parent!r}, which is not there"
    above = 0 if parent is None else nodes[parent]["depth"]
    if node["depth"] is None or node["depth"] != above + 1:
      return f"node {i} has depth {node['depth']} below a depth of {above}"
  if not isinstance(result["path"], list) or not all(
      map(is_node, result["path"])):
    return "its path leads through nodes that are not there"
  chain = [None, *result["path"]]
  if any(nodes[b]["parent"] != a for a, b in zip(chain, chain[1:])):
    return "its path is no path: a node does not continue the one before"
  return None


def render(transcripts: list[Transcript], index: int, ending: str) -> str:
  """The text of an .svg or .html file of one of the searches.

  Args:
    transcripts: of a file.
    index: which, from 0.
    ending: '.svg' or '.html'.

  Raises:
    UserError: an index out of range, a search without a tree, or another
      ending.
  """
  if ending not in (".svg", ".html"):
    raise UserError(f"trees are drawn as .svg or .html, not {ending!r}")
  if not 0 <= index < len(transcripts):
    raise UserError(f"no search {index}: the file's {len(transcripts)} are"
                    f" numbered from 0 to {len(transcripts) - 1}")
  chosen = transcripts[index]
  svg = draw.tree(chosen.result, prompt=chosen.prompt, correct=chosen.correct)
  return svg if ending == ".svg" else page(svg, chosen)


def page(svg: str, transcript: Transcript) -> str:
  """A self-contained HTML page: the tree, and the answer's whole text."""
  cost = transcript.result.get("cost") or {}
  verdict = {True: "right", False: "wrong", None: "not graded"}
  about = [f"answer: {transcript.result['answer'] or 'none'}"
           f" ({verdict[transcript.correct]})",
           f"{len(transcript.result['nodes']):,} thoughts"]
  if "generated_tokens" in cost:
    about.append(f"{cost['generated_tokens']:,} generated tokens")
  if "flops" in cost:
    about.append(f"{cost['flops']:.3g} FLOPs")
  return _PAGE.format(
      title=escape(transcript.prompt or "A search"), sans=SANS, svg=svg,
      about=escape(" · ".join(about)),
      text=escape(transcript.result["text"].strip()))
