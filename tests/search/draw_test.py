"""The drawn tree says what the search did, and stays small enough to read."""

import re
from xml.etree import ElementTree

import fabricated
from lm.search import Cost, Node, Result
from lm.search import draw
from lm.types import UserError
import pytest

NS = {"s": "http://www.w3.org/2000/svg"}


def node(parent, depth, text, state, status, value=0.0):
  return Node(parent, depth, text, state, -1.0, value, value, value,
              status)


@pytest.fixture
def result():
  """Two kept, one merged across parents, one twice, one unreadable."""
  nodes = [
      node(None, 1, "1 + 2 = 3 (left: 3 4)\n", (3, 4), "kept", 2.0),  # 0
      node(None, 1, "2 + 1 = 3 (left: 3 4)\n", (3, 4), "merged", 1.0),
      node(None, 1, "4 - 1 = 3 (left: 2 3)\n", (2, 3), "kept", 0.0),  # 2
      node(None, 1, "<b> & so on\n", None, "unreadable"),
      node(0, 2, "3 * 4 = 12 (left: 12)\n", (12,), "kept", 3.0),  # 4
      node(2, 2, "6 * 2 = 12 (left: 12)\n", (12,), "merged", 1.0),
      node(2, 2, "3 - 2 = 1 (left: 1)\n", (1,), "pruned", -9.0),
  ]
  return Result("(1 + 2) * 4", "...", Cost(9, 9, 9.0), nodes, [0, 4])


def texts(svg):
  root = ElementTree.fromstring(svg)
  return ["".join(t.itertext()) for t in root.iterfind(".//s:text", NS)]


def edges(svg, colour):
  root = ElementTree.fromstring(svg)
  return [p for p in root.iterfind(".//s:path", NS)
          if p.get("stroke") == colour and "C" in p.get("d")]


def test_tells_thoughts_values_and_folds(result):
  svg = draw.tree(result, prompt="Make 12", correct=True)
  shown = texts(svg)
  assert "1 + 2 = 3 (left: 3 4)  ×2" in shown  # The merged one is counted.
  assert not any(t.startswith("2 + 1") for t in shown)
  assert "3 * 4 = 12 (left: 12)  ×2" in shown
  assert "<b> & so on" in shown
  assert "(1 + 2) * 4  ✓" in shown
  assert {"88%", "50%", "95%", "0%"} <= set(shown)  # Sigmoids.
  assert [t for t in shown if t.startswith("thought")] == [
      "thought 1", "thought 2"]


def test_colours_tell_path_kept_and_merges(result):
  svg = draw.tree(result, prompt="Make 12")
  c = draw.COLOURS
  assert len(edges(svg, c["path"])) == 3  # Two thoughts and the answer.
  assert len(edges(svg, c["kept"])) == 1
  merged, = edges(svg, c["merged"])  # A sibling's merge needs no edge.
  assert merged.get("stroke-dasharray")


def test_wrong_and_missing_answers(result):
  assert "(1 + 2) * 4  ✗" in texts(draw.tree(result, correct=False))
  result.answer = None
  assert "(no answer)  ✗" in texts(draw.tree(result, correct=False))
  result.path = []
  assert "answer" not in texts(draw.tree(result, correct=False))


def test_a_search_that_wrote_nothing_readable():
  nodes = [node(None, 1, text, None, "unreadable")
           for text in ("\x00\x01\ufffd", "", "", "x" * 500)]
  svg = draw.tree(Result(None, "", Cost(), nodes), prompt="p", correct=False)
  assert {"(nothing)  ×2", "x" * 43 + "…"} <= set(texts(svg))


def test_from_json_is_the_same(result):
  import json
  plain = json.loads(json.dumps(result.to_dict()))
  assert draw.tree(plain, prompt="p") == draw.tree(result, prompt="p")


def test_other_opinions(result):
  assert "-9.00" in texts(draw.tree(result, opinion="score"))
  shown = texts(draw.tree(result, opinion="none"))
  assert not any(re.fullmatch(r"-?[\d.]+%?", t) for t in shown)
  with pytest.raises(UserError, match="opinion"):
    draw.tree(result, opinion="mine")


def test_needs_a_tree():
  with pytest.raises(UserError, match="no tree"):
    draw.tree(Result("1", "1", Cost()))


@pytest.mark.parametrize("b, k", [(5, 5), (5, 24), (1, 3)])
def test_a_big_tree_stays_legible(b, k):
  result = fabricated.tree((4, 9, 10, 13), b, k)
  svg = draw.tree(result, prompt="Make 24 from 4 9 10 13")
  root = ElementTree.fromstring(svg)
  width, height = (float(root.get(a)) for a in ("width", "height"))
  assert width < 1500 and height < 800
  rows: dict = {}
  for text in root.iterfind(".//s:g/s:text", NS):
    x, y = float(text.get("x")), float(text.get("y"))
    assert 0 <= x < width and 0 < y < height
    if text.get("text-anchor") != "end":
      rows.setdefault(x, []).append(y)
  for ys in rows.values():  # Nothing lies on anything else.
    ys.sort()
    assert all(b - a >= 20 for a, b in zip(ys, ys[1:]))
  # Every sampled thought is accounted for: drawn, counted, or folded.
  counted = 0
  for group in root.iterfind(".//s:g", NS):
    shown = "".join(group.find("s:text", NS).itertext())
    more = re.fullmatch(r"and (\d+) more", shown)
    times = re.search(r"×(\d+)$", shown)
    counted += int((more or times or [0, 1])[1])
  assert counted == len(result.nodes) + 2  # The question and the answer.


def test_is_self_contained(result):
  svg = draw.tree(result, prompt='"quoted" & <marked>')
  assert not re.search(r"href|url\(|<script|<image|@import", svg)
