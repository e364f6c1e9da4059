"""Strategies that choose where to look next, on scripted mazes."""

import jax
from lm import search
import numpy as np
import pytest
from tests.search.scripted import Maze, Script, go, total

KEY = jax.random.key(0)
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def solve(strategy, thoughts, *, num_thoughts=3, **how):
  """(result, script) of a maze given as {"a b": [thoughts after go a, go b]}.

  Every end answers its own path.
  """
  at = lambda path: "maze:" + "".join(f"go {s}\n" for s in path.split())
  answers = {"maze:": [("out nowhere", 0.0, 0.0)]}
  for path, moves in thoughts.items():
    for line, _, _ in moves:
      answers[at(path) + line] = [
          ("out " + "_".join([*path.split(), line[3:-1]]), 0.0, 0.0)]
  script = Script({at(path): moves for path, moves in thoughts.items()},
                  answers)
  (result,) = search.solve(
      strategy, script, [Maze(num_thoughts=num_thoughts)], KEY, **how)
  assert result.cost.generated_tokens == total(script)
  return result, script


def paths(script):
  """What each call continued, as in the maze's table."""
  return [[t.removeprefix("maze:").replace("go ", "").replace("\n", " ")
           .strip() for t in call] for call in script.grown]


TURNS = {"": [go("a", value=2.0), go("b", value=1.0)],
         "a": [go("c", value=0.5), go("d", value=-0.5)],
         "b": [go("e", value=1.5), go("f", value=-3.0)],
         "b e": [go("g", value=0.9), go("h", value=3.0)],
         "a c": [go("i", value=9.0), go("j", value=8.0)]}


def test_best_first_goes_on_where_it_looks_best_whatever_the_depth():
  result, script = solve(search.best_first(2, accept=0.72), TURNS)
  # After a (2) only c (0.5) and d: so b (1.0), and e, worth b's 1.0, next; h
  # is then a leaf of 1.0, and 0.73 is enough.
  assert paths(script) == [["", ""], ["a", "a"], ["b", "b"], ["b e", "b e"]]
  assert result.answer == "b_e_h"
  assert [n.status for n in result.nodes] == [
      "kept", "kept", "pruned", "pruned", "kept", "pruned", "pruned", "pruned"]


def test_best_first_goes_on_until_it_accepts():
  result, script = solve(search.best_first(2, accept=0.74, expansions=5), TURNS)
  assert paths(script)[3:] == [["b e"] * 2, ["a c"] * 2]
  assert result.answer == "b_e_h"  # c's leaves are worth no more than c.
  result, _ = solve(search.best_first(2, accept=0.99, expansions=5), TURNS,
                    evaluate="last_value")
  assert result.answer == "a_c_i"


def test_best_first_continues_several_at_once():
  _, script = solve(search.best_first((2, 1), width=2, accept=0.72), TURNS)
  assert paths(script) == [["", ""], ["a", "b"], ["b e", "a c"]]


def test_expansions_bound_the_search():
  result, script = solve(search.best_first(2, expansions=2), TURNS)
  assert len(script.grown) == 2
  assert result.answer == "a_c"  # The best of the deepest.


TRAP = {"": [go("a", value=3.0), go("b", value=2.0)],
        "a": [go("c", value=2.5), go("d", value=1.5)],
        "a c": [go("e", value=-5.0), go("f", value=-6.0)],
        "a d": [go("g", value=1.0), go("h", value=-1.0)],
        "b": [go("i", value=2.0), go("j", value=-9.0)],
        "b i": [go("k", value=2.0), go("l", value=0.0)]}


def test_depth_first_backtracks_out_of_a_trap():
  result, script = solve(search.depth_first(2, accept=0.7), TRAP)
  # c is a trap; the way back leads to d, not to the shallower b.
  assert paths(script) == [[""] * 2, ["a"] * 2, ["a c"] * 2, ["a d"] * 2]
  assert result.answer == "a_d_g"


def test_depth_first_goes_back_as_far_as_it_must_to_accept():
  result, script = solve(search.depth_first(2, accept=0.8), TRAP)
  assert paths(script)[3:] == [["a d"] * 2, ["b"] * 2, ["b i"] * 2]
  assert result.answer == "b_i_k"
  # Beyond hope it looks everywhere once, but j, and takes the best leaf.
  result, script = solve(search.depth_first(2, accept=1.0), TRAP)
  assert len(script.grown) == 6 and result.answer == "b_i_k"


def test_depth_first_gives_up_what_is_pruned():
  result, script = solve(search.depth_first(2, accept=0.7, prune=0.85), TRAP)
  # d's 1.5 is less likely than that (0.82); c's 2.5 and b's 2.0 are not.
  assert paths(script) == [[""] * 2, ["a"] * 2, ["a c"] * 2, ["b"] * 2,
                           ["b i"] * 2]
  assert result.answer == "b_i_k"


HIDDEN = {"": [go("a", -0.1, 0.5), go("b", -3.0, -0.5)],
          "a": [go("c", -0.1, -4.0), go("d", -1.0, -4.0)],
          "b": [go("e", -0.1, 5.0), go("f", -1.0, -4.0)]}


def mcts(thoughts, simulations, c=1.0, k=2):
  return solve(search.mcts(k, simulations=simulations, c=c), thoughts,
               num_thoughts=2, evaluate="last_value")


def test_mcts_finds_a_treasure_behind_an_unlikely_move():
  result, script = mcts(HIDDEN, 8)
  assert result.answer == "b_e"
  assert paths(script)[:2] == [[""] * 2, ["a"] * 2]  # First the likely one.
  result, script = mcts(HIDDEN, 24)
  a, b = result.nodes[:2]
  assert b.visits > a.visits  # Once it was found, it is where it looks.
  # All weight on the prior: it never turns to b.
  result, script = mcts(HIDDEN, 5, c=50.0)
  assert ["b", "b"] not in paths(script)
  assert result.answer in ("a_c", "a_d")


@pytest.mark.parametrize("simulations", [1, 2, 5, 20])
def test_mcts_backs_up_what_it_sees_once_for_each_simulation(simulations):
  result, _ = mcts(HIDDEN, simulations)
  nodes = result.nodes
  below = lambda i: [n for n in nodes if n.parent == i]
  # The first simulation ends at the root itself, each other one below.
  assert sum(n.visits for n in below(None)) == simulations - 1
  for i, node in enumerate(nodes):
    children = below(i)
    if children:  # Continued once: 1 for that, and for each simulation below.
      assert node.visits == 1 + sum(n.visits for n in children)
      best = max(sigmoid(n.score) for n in children)
      assert node.total == pytest.approx(
          best + sum(n.total for n in children), rel=1e-5)
    else:  # A leaf is worth what it is, each time.
      assert node.total == pytest.approx(
          node.visits * sigmoid(node.score), rel=1e-5)


def test_mcts_leaves_dead_ends():
  dead = HIDDEN | {"a": [("hm\n", 0.0, 9.0), ("well\n", 0.0, 9.0)]}
  result, script = mcts(dead, 8)
  assert paths(script).count(["a"] * 2) == 1
  a = result.nodes[0]
  assert (a.status, a.visits) == ("pruned", 1)
  assert a.total == pytest.approx(0.0, abs=1e-6)
  assert result.answer == "b_e"


def test_mcts_asks_again_when_nothing_can_be_read():
  result, script = mcts({"": [("hm\n", 0.0, 0.0)]}, 4)
  assert paths(script) == [[""] * 2] * 4
  assert result.answer == "nowhere" and len(result.nodes) == 8
