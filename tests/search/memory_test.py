"""Thoughts that branch anywhere are worth what a plain forward pass says.

Run as a program, it writes what it found on eight fake devices.
"""

import json
import os
import pathlib
import subprocess
import sys

import house
import jax
from lm import search
from lm import sharding
from lm.data import vocab as vocab_lib
from lm.model import LanguageModel
import numpy as np
import pytest
from tests.model import tiny
from tests.search.scripted import Maze

KEY = jax.random.key(3)
PROMPTS = ("a", "a somewhat longer maze", "maze", "x" * 13)
ROWS, LINE, DEPTHS = 3, 5, 3


class Spelt(vocab_lib.ByteVocab):
  """Every fifth token ends a line and every eleventh a text, so that thoughts
  end at odd times."""

  def __init__(self):
    super().__init__()
    self.eos_id = 3

  @property
  def eos_ids(self):
    return tuple(range(3, self.size, 11))

  def token_bytes(self, index):
    return b"\n" if index % 5 == 0 else b"."


class Anything(Maze):
  def read(self, line):
    return line

  def read_answer(self, text):
    return text


def writer(**changes):
  vocab = Spelt()
  # Sizes that every axis of the mesh divides.
  config = tiny.config(vocab_size=vocab.size, scalar_head=True, num_heads=4,
                       d_model=32, max_length=96, **changes)
  return search.Writer(LanguageModel(config), tiny.params(config), vocab,
                       line_tokens=LINE, answer_tokens=8)


def grown(writer):
  """(expand, tree) after thoughts from the start, then from anywhere."""
  rng = np.random.default_rng(0)
  problems = [Anything(p) for p in PROMPTS]
  expand = search.Expand(writer, problems, KEY,
                         capacity=1 + (DEPTHS + 1) * ROWS)
  meter = search.Meter(search.Budget(), expand.costs)
  tree = expand.tree
  for call in range(DEPTHS + 1):
    nodes = np.zeros((len(problems), ROWS), np.int32)
    if call == 1:  # A chain that gets deep, and idle rows.
      nodes[:, 0], nodes[:, 2] = 1, -1
    elif call:
      count = np.asarray(tree.count_P)[:, None]
      nodes = rng.integers(0, count, nodes.shape).astype(np.int32)
      nodes[:, 0] = count[:, 0] - ROWS + (call == 2)
    tree, _ = expand(tree, nodes, lambda t: t.value_PR, meter, merge=False)
  return expand, jax.device_get(tree)


def from_scratch(writer, expand, tree):
  """What the forward pass says of each node's whole text: (log-prob, value)."""
  rows, places = [], []
  for p, prompt in enumerate(expand.prompts):
    ids = {0: list(prompt)}
    for i in range(1, tree.count_P[p]):  # Parents come first.
      ids[i] = ids[tree.parent_PC[p, i]] + tree.tokens_PCM[
          p, i, :tree.num_PC[p, i]].tolist()
      rows.append(ids[i])
      places.append((p, i))
  tokens = np.zeros((len(rows), 64), np.int32)
  for row, ids in zip(tokens, rows):
    row[:len(ids)] = ids
  model = LanguageModel(writer.model.config)
  out = jax.device_get(jax.jit(model.forward)(writer.params, tokens))
  logits = out.logits_BTV[..., :writer.vocab.size]
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  want = {}
  for r, ((p, i), ids) in enumerate(zip(places, rows)):
    start = len(expand.prompts[p])
    end = len(ids)
    while end > start and ids[end - 1] in writer.vocab.eos_ids:
      end -= 1  # An end says nothing: the value before it counts.
    want[p, i] = (sum(log_probs[r, t - 1, ids[t]]
                      for t in range(start, len(ids))),
                  out.values_BT[r, end - 1])
  return want


def check(writer, expand, tree):
  """Returns the lengths of thoughts, and the depths, that were seen."""
  want = from_scratch(writer, expand, tree)
  assert len(want) == sum(tree.count_P) - len(PROMPTS) > 40
  for (p, i), (log_prob, value) in want.items():
    np.testing.assert_allclose(tree.log_prob_PC[p, i], log_prob, atol=1e-4)
    np.testing.assert_allclose(tree.value_PC[p, i], value, atol=1e-4)
  lengths = {int(tree.num_PC[at]) for at in want}
  return lengths, {int(tree.depth_PC[at]) for at in want}


@pytest.mark.parametrize("changes", [
    {}, dict(window=9, tied=True, qk_norm=True)], ids=["plain", "window"])
def test_every_node_is_worth_what_its_whole_text_is(changes):
  model = writer(**changes)
  lengths, depths = check(model, *grown(model))
  assert lengths == {1, 2, 3, 4, 5}  # Blocks are full and all but empty.
  assert {1, 2, 3, 4} == depths


def test_answers_go_on_from_their_nodes():
  """What `finish` writes greedily is what the plain model finds likeliest."""
  model = writer()
  expand, tree = grown(model)
  nodes = np.array([[0, 5], [-1, 7], [10, 11], [3, 0]], np.int32)
  out = expand.finish(tree, nodes, search.Meter(
      search.Budget(), [search.Cost() for _ in PROMPTS]))
  forward = jax.jit(LanguageModel(model.model.config).forward)
  for p, r in np.ndindex(nodes.shape):
    if nodes[p, r] < 0:
      assert out.texts[p][r] == "" and out.num_PR[p, r] == 0
      continue
    path, ids = int(nodes[p, r]), []
    while path:
      ids = tree.tokens_PCM[p, path, :tree.num_PC[p, path]].tolist() + ids
      path = int(tree.parent_PC[p, path])
    ids = list(expand.prompts[p]) + ids
    written = out.tokens_PRM[p, r, :out.num_PR[p, r]].tolist()
    assert len(written) == 8 or written[-1] in model.vocab.eos_ids
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, :len(ids) + len(written)] = ids + written
    logits = np.array(forward(model.params, tokens).logits_BTV[0])
    best = logits[:, :model.vocab.size].argmax(axis=-1)
    assert written == best[len(ids) - 1:len(ids) + len(written) - 1].tolist()


STRATEGIES = {"mcts": search.mcts(2, simulations=3),
              "token beam": search.token_beam(2)}


def texts(model):
  """What every node of the tree says, and every answer and its cost."""
  expand, tree = grown(model)
  check(model, expand, tree)
  found = {"tree": [
      [n.text for n in expand.result(tree, p, search.Cost()).nodes]
      for p in range(len(PROMPTS))]}
  for name, strategy in STRATEGIES.items():
    found[name] = [[r.text, r.cost.forward_tokens] for r in search.solve(
        strategy, model, [Anything(p) for p in PROMPTS], KEY)]
  return found


def test_eight_devices_write_what_one_does(tmp_path):
  path = tmp_path / "found.json"
  process = subprocess.run(
      [sys.executable, __file__, str(path)], cwd=house.ROOT, text=True,
      capture_output=True, env=os.environ | {
          "PYTHONPATH": f"{house.ROOT}:{house.ROOT / 'tests'}",
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
  assert process.returncode == 0, process.stderr[-3000:]
  found, alone = json.loads(path.read_text()), texts(writer())
  assert len(set(alone["tree"][0])) > 5
  for name, want in alone.items():
    assert found[name] == want, name


def on_fake_devices():
  with jax.set_mesh(sharding.make_mesh((2, 2, 1, 2))):
    model = writer()
    net = LanguageModel(model.model.config)
    params = jax.device_put(model.params, sharding.concrete_shardings(
        jax.eval_shape(net.init, KEY), jax.sharding.get_mesh()))
    return texts(search.Writer(
        net, params, model.vocab, line_tokens=LINE, answer_tokens=8))


if __name__ == "__main__":
  pathlib.Path(sys.argv[1]).write_text(json.dumps(on_fake_devices()))
