"""Invented results, for the tests of drawings and reports only."""

import json
import pathlib

from lm.data.problems import game24
from lm.evals import curves
from lm.search import Cost, Node, Result
import numpy as np


def tree(numbers, b, k, *, seed=0) -> Result:
  """A beam search's result, of random moves and noisy values."""
  rng = np.random.default_rng(seed)
  nodes, frontier = [], [None]
  for depth in range(game24.NUM_THOUGHTS):
    for parent in frontier:
      state = (tuple(sorted(numbers)) if parent is None
               else nodes[parent].state)
      options = game24.moves(state)
      for _ in range(k):
        text = options[rng.integers(len(options))].line()
        if rng.random() < 0.06:
          text = "4 * 6 = = (left\n"
        left = game24.read(text)
        good = left is not None and game24.winnable(left)
        value = float(rng.normal(2.5 if good else -3.0, 1.5))
        before = value if parent is None else nodes[parent].weakest
        nodes.append(Node(
            parent, depth + 1, text, left, -1.5 * (depth + 1), value,
            min(value, before)))
    frontier = _select(nodes, depth + 1, b)
  path, i = [], frontier[0]
  while i is not None:
    path.insert(0, i)
    i = nodes[i].parent
  answer = "(10 - 4) * (13 - 9)"
  text = "".join(nodes[i].text for i in path) + f"Answer: {answer} = 24"
  return Result(answer, text, Cost(560, 900, 3.4e9), nodes, path)


def _select(nodes, depth, b) -> list[int]:
  """Sets what became of the thoughts of a depth, as the weakest line says."""
  kept, seen = [], set()
  for i in sorted((i for i, n in enumerate(nodes) if n.depth == depth),
                  key=lambda i: -nodes[i].weakest):
    node = nodes[i]
    node.score = node.weakest
    if node.state is None:
      node.status = "unreadable"
    elif node.state in seen:
      node.status = "merged"
    else:
      seen.add(node.state)
      if len(kept) < b:
        node.status = "kept"
        kept.append(i)
  return kept


def methods() -> list[dict]:
  """Rows of every family."""
  def row(name, label, family, solved, tokens):
    return curves.row(
        name, [i < solved for i in range(100)], label=label, family=family,
        generated_tokens=[tokens] * 100, flops=[6e6 * tokens] * 100,
        seconds=0.01 * tokens)

  rows = [row("greedy", "Greedy", "greedy", 11, 44)]
  for n, solved in ((4, 20), (16, 45), (64, 74)):
    rows.append(row(f"best_of_{n}", f"Best of {n}", "best_of_n", solved,
                    44 * n))
    rows.append(row(f"vote_{n}", f"Vote of {n}", "self_consistency",
                    solved // 2, 44 * n))
  for b, k, solved in ((1, 5, 40), (5, 5, 88), (5, 12, 95)):
    for name, label, share in (("value", "value head", 1.0),
                               ("log_prob", "log-probability", 0.55),
                               ("random", "random", 0.2)):
      rows.append(row(
          f"tot_{name}_b{b}_k{k}", f"ToT, {label}, b={b} k={k}",
          f"tot_{name}", int(solved * share), (1 + 2 * b) * k * 9 + 20))
  return rows


def metrics(steps, low, high, *, key="loss") -> list[dict]:
  """A noisy falling curve with a held-out one."""
  rng = np.random.default_rng(steps)
  rows = []
  for step in range(1, steps + 1, max(1, steps // 100)):
    value = low + high * float(np.exp(-6 * step / steps))
    rows.append({"step": step, "loss": value + 0.03 * rng.normal(),
                 key: value + 0.03 * rng.normal()})
    if step % (steps // 5) == 1:
      rows.append({"step": step, f"eval/{key}": value + 0.1})
  return rows


def demo(root: pathlib.Path, *, seed: int = 0) -> None:
  """What a finished demo's stages leave in `root`."""
  def write(path, value):
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))

  for name, seconds in (("pretrain", 260.4), ("instruct", 95.0),
                        ("value", 230.0), ("attempts", 40.0),
                        ("judge", 100.0), ("search", 120.0),
                        ("samples", 14.0)):
    write(f"{name}/demo.json", {
        "done": True, "seconds": seconds, "cpu_seconds": 1.8 * seconds})
  about = {"steps": 1200, "parameters": 1_234_567}
  write("pretrain/result.json", {**about, "bits_per_byte": 1.93, "loss": 3.1})
  write("instruct/result.json", {
      **about, "exact": 0.12, "format": 0.98, "before/exact": 0.0,
      "before/format": 0.01})
  write("value/result.json", {**about, "brier": 0.08, "accuracy": 0.9})
  write("attempts/result.json", {"attempts": 9000, "success_line1": 0.5})
  write("judge/result.json", {**about, "brier": 0.05, "accuracy": 0.94})
  for name, low, high, key in (
      ("pretrain", 3.0, 5.0, "loss"), ("instruct", 0.9, 1.0, "loss"),
      ("value", 0.2, 0.5, "value_loss"),
      ("judge", 0.1, 0.3, "value_loss")):
    (root / name / "metrics.jsonl").write_text("".join(
        json.dumps(r) + "\n" for r in metrics(1200, low, high, key=key)))
  puzzle = (4, 9, 10, 13)
  trees = [{"prompt": game24.prompt(puzzle), "rank": 901 + i,
            "correct": i % 2 == 0,
            "result": tree(puzzle, 5, 5, seed=i).to_dict()}
           for i in range(3)]
  rows = methods()
  write("search/report.json", {
      "methods": rows, "seed": seed, "checkpoint": "runs/demo/judge",
      "parameters": about["parameters"], "trees": trees,
      "outcomes": {m["name"]: [i < round(100 * m["accuracy"])
                               for i in range(100)] for m in rows},
      "overlap": {"3": 0.76, "2": 0.93}})
  write("samples/samples.json", {
      "temperature": 0.7, "top_p": 0.95, "seed": 0, "devices": "1 x cpu",
      "samples": [
          {"prompt": game24.prompt(puzzle), "base": "\n13 - 9 = 4 <b>&",
           "instructed": "13 - 9 = 4 (left: 4 4 10)\n"},
          {"prompt": "What does os.path.join do?", "base": " import os\n",
           "instructed": "Join two or more pathname components."}]})
