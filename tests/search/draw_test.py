"""The drawn tree says what the search did, and stays small enough to read."""

import json
import re
from xml.etree import ElementTree

import fabricated
from lm.search import Cost, Node, Result
from lm.search import draw
from lm.search import draw_file
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


def plain(parent, depth, text, state, status, **more):
  """A node as JSON has it."""
  return {"parent": parent, "depth": depth, "text": text, "state": state,
          "status": status, "log_prob": -1.0, "value": 0.0, "score": 0.0,
          **more}


def result_of(nodes, path):
  return {"answer": "x", "text": "t", "path": path, "nodes": nodes,
          "cost": {"generated_tokens": 1234, "flops": 2.5e6}}


def places(svg):
  """(left end, middle) of each row by its text, without counts."""
  root = ElementTree.fromstring(svg)
  return {"".join(t.itertext()).split("  ")[0]:
          (float(t.get("x")) - 8, float(t.get("y")) - 4)
          for t in root.iterfind(".//s:g/s:text", NS)}


def ends(path):
  """((x, y), (x, y)) of an edge."""
  x0, y0, *_, x1, y1 = map(float, re.findall(r"-?[\d.]+", path.get("d")))
  return (x0, y0), (x1, y1)


def test_a_search_that_goes_back_to_shallow_thoughts():
  """Siblings written after their siblings' children; a target written last."""
  nodes = [
      plain(None, 1, "a", "A", "kept"),
      plain(0, 2, "a1", "S", "merged"),  # Into what "b1" writes later.
      plain(0, 2, "a2", "T", "kept"),
      plain(2, 3, "a21", "U", "pruned"),
      plain(None, 1, "b", "B", "kept"),
      plain(4, 2, "b1", "S", "kept"),
      plain(5, 3, "b11", "V", "kept"),
  ]
  svg = draw.tree(result_of(nodes, [4, 5]), prompt="q")
  at, c = places(svg), draw.COLOURS
  assert "a1" not in at and "b1  ×2" in texts(svg)
  assert at["a"][0] == at["b"][0] < at["a2"][0] == at["b1"][0] < (
      at["a21"][0]) == at["b11"][0]
  merged, = edges(svg, c["merged"])
  (_, y0), end = ends(merged)
  assert y0 == at["a"][1] and end == at["b1"]
  chosen = {ends(p)[1] for p in edges(svg, c["path"])}
  # The answer continues the end of the path, though others went deeper.
  assert chosen == {at["b"], at["b1"], at["x"]}
  last = next(p for p in edges(svg, c["path"]) if ends(p)[1] == at["x"])
  assert ends(last)[0][1] == at["b1"][1]


def test_a_merge_into_another_depth_and_one_into_nothing():
  nodes = [
      plain(None, 1, "a", {"n": 1}, "kept"),
      plain(0, 2, "a1", {"n": 2}, "kept"),
      plain(1, 3, "a11", {"n": 1}, "merged"),  # Back to the first state.
      plain(1, 3, "a12", {"n": 3}, "merged"),  # Nobody has this one.
  ]
  svg = draw.tree(result_of(nodes, []), prompt="q")
  at = places(svg)
  back, on = sorted((ends(p) for p in edges(svg, draw.COLOURS["merged"])),
                    key=lambda e: e[1])
  (x0, y0), end = back
  assert y0 == at["a1"][1] and end == at["a"] and x0 > end[0]
  assert "a11" not in at and on[1] == at["a12"] and at["a12"][0] > x0


def test_visits_are_shown_when_there_are_several():
  nodes = [plain(None, 1, "a", "A", "kept", visits=12, total=6.0, prior=0.25),
           plain(None, 1, "b", "B", "kept", visits=1, total=0.1, prior=0.75)]
  svg = draw.tree(result_of(nodes, [0]))
  assert {"a  n=12", "b", "n=v: visited v times"} <= set(texts(svg))
  titles = [t.text for t in ElementTree.fromstring(svg).iter(
      "{http://www.w3.org/2000/svg}title")]
  assert any("12 visits, total 6.00 (mean 0.50); prior 0.25" in t
             for t in titles)
  assert "visited" not in draw.tree(result_of(
      [plain(None, 1, "a", "A", "kept", visits=1)], [0]))


def test_a_crowd_of_kept_thoughts_folds_with_what_continues_it():
  nodes = [plain(None, 1, f"t{i}", i, "kept", visits=40 - i) for i in range(40)]
  nodes += [plain(i, 2, f"u{i}", 100 + i, "kept", visits=2) for i in range(40)]
  svg = draw.tree(result_of(nodes, [39, 79]), prompt="q", max_rows=10)
  shown = texts(svg)
  # The path, and the most visited of the others; one line for the rest.
  best = [*range(8), 39]
  assert [t for t in shown if re.match(r"t\d", t)] == [
      f"t{i}  n={40 - i}" if i < 39 else "t39" for i in best]
  assert [t for t in shown if re.match(r"u\d", t)] == [
      f"u{i}  n=2" for i in best]
  assert "and 62 more" in shown  # 31 of 40, and the child of each.
  at = places(svg)
  stray = [p for p in ElementTree.fromstring(svg).iterfind(".//s:path", NS)
           if "C" in p.get("d") and ends(p)[1] not in at.values()]
  assert not stray


def written(tmp_path, name, *values):
  path = tmp_path / name
  path.write_text("\n".join(map(json.dumps, values)))
  return path


def test_reads_reports_results_and_lines(tmp_path, result):
  one = json.loads(json.dumps(result.to_dict()))
  entry = {"prompt": "p", "rank": 901, "correct": True, "result": one}
  expected = draw_file.Transcript(one, "p", True)
  bare = draw_file.Transcript(one)
  for name, values, found in (
      ("report.json", [{"methods": [], "trees": [entry, entry]}],
       [expected] * 2),
      ("result.json", [one], [bare]),
      ("a.jsonl", [entry, one], [expected, bare]),
      ("list.json", [[one, entry]], [bare, expected])):
    assert draw_file.read(written(tmp_path, name, *values)) == found


def test_a_page_holds_the_tree_and_the_answer(result):
  result.text = "1 + 2 = 3 <b>\nAnswer: {x}"
  one = draw_file.Transcript(result.to_dict(), "Make <12>", False)
  svg, page = (draw_file.render([one], 0, e) for e in (".svg", ".html"))
  assert svg in page and svg == draw.tree(result, prompt="Make <12>",
                                          correct=False)
  assert "<pre>1 + 2 = 3 &lt;b&gt;\nAnswer: {x}</pre>" in page
  assert "<title>Make &lt;12&gt;</title>" in page
  assert "(wrong) · 7 thoughts · 9 generated tokens" in page
  assert not re.search(r"href|url\(|<script|<img|@import", page)


A = plain(None, 1, "a", "A", "kept")


@pytest.mark.parametrize("nodes, path, words", [
    ([{**A, "parent": 3}], [], "continues node 3"),
    ([{**A, "depth": 2}], [], "depth 2 below a depth of 0"),
    ([A, {**A, "parent": 0}], [], "depth 1 below a depth of 1"),
    ([{**A, "status": "lost"}], [], "'lost'"),
    ([{**A, "value": "high"}], [], "value of node 0"),
    ([{**A, "text": None}], [], "text of node 0"),
    ([{"parent": None}], [], "no 'depth'"),
    (["a"], [], "not an object"),
    ([A], [1], "path"),
])
def test_a_broken_tree_is_named(tmp_path, nodes, path, words):
  file = written(tmp_path, "r.json", result_of(nodes, path))
  with pytest.raises(UserError, match=words):
    draw_file.read(file)
