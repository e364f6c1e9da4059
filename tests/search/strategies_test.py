"""Strategies on a scripted writer: what they find, keep, drop and count."""

import jax
from lm import search
from lm.search import strategies
from lm.types import UserError
import numpy as np
import pytest
from tests.search.scripted import Maze, Script, go, total

MAZE = (Maze(),)
KEY = jax.random.key(0)


def solve(strategy, script, problems=MAZE, key=KEY, **how):
  return search.solve(strategy, script, problems, key, **how)


def maze(name="maze"):
  """The way out is b, then y; a looks likeliest, and c is a dead end.

  From the start: a (likely, low value), b (rare, high value), c.
  """
  at = name + ":"
  thoughts = {at: [go("a", -0.1, 0.0), go("b", -3.0, 2.0), go("c", -1.0, 1.0)]}
  for first, second in [("a", "m"), ("b", "y"), ("c", "n")]:
    value = {"a": -1.0, "b": 5.0, "c": -2.0}[first]
    thoughts[at + f"go {first}\n"] = [
        go(second, -0.5, value), go("dead", -0.2, -9.0),
        ("gibberish\n", -2.0, 9.0)]
  answers = {at: [("out wrong", -0.3, -1.0), ("out lucky", -4.0, 3.0),
                  ("nothing", -0.1, 9.0), ("out wrong", -2.0, -1.0)]}
  for path, found in [("a m", "wrong"), ("b y", "treasure"), ("c n", "wrong"),
                      ("a dead", "wall"), ("b dead", "wall"),
                      ("c dead", "wall")]:
    steps = "".join(f"go {s}\n" for s in path.split())
    answers[at + steps] = [(f"out {found}", -0.1, 0.0), ("out there", -5., 0.)]
  return thoughts, answers


def writer(*names):
  thoughts, answers = {}, {}
  for name in names or ("maze",):
    t, a = maze(name)
    thoughts.update(t)
    answers.update(a)
  return Script(thoughts, answers)


@pytest.mark.parametrize("b", [1, 2, 3])
def test_beam_finds_the_planted_path(b):
  script = writer()
  (result,) = solve(search.tree_of_thoughts(b, 3), script)
  assert result.answer == "treasure"
  assert result.text == "go b\ngo y\nout treasure"
  assert [result.nodes[i].text for i in result.path] == ["go b\n", "go y\n"]
  assert result.cost.generated_tokens == total(script)
  # Three thoughts from the start, three from each kept one, one answer.
  assert script.calls == [("grow", 3), ("grow", 3 * b), ("greedy", 1)]


def test_beam_of_log_probs_is_led_astray():
  (result,) = solve(search.tree_of_thoughts(1, 3), writer(),
                    evaluate="log_prob")
  assert result.text == "go a\ngo dead\nout wall"
  # Paths add up: from b at -3 everything is worse than from a at -0.1.
  scores = [n.log_prob for n in result.nodes]
  np.testing.assert_allclose(
      scores, [-.1, -3., -1., -.6, -.3, -2.1], rtol=1e-6)
  np.testing.assert_allclose(
      [n.prior for n in result.nodes], [-.1, -3., -1., -.5, -.2, -2.])


def test_too_narrow_a_beam_misses_a_late_treasure():
  """c leads to it, but b looks better at first: width must matter."""
  thoughts, answers = maze()
  thoughts["maze:go b\n"] = [go("y", -0.5, 0.5)]
  thoughts["maze:go c\n"] = [go("z", -0.5, 20.0)]
  answers["maze:go c\ngo z\n"] = [("out jewel", 0.0, 0.0)]
  found = {}
  for b in (1, 2):
    script = Script(thoughts, answers)
    (found[b],) = solve(search.tree_of_thoughts(b, 3), script)
  assert found[1].answer == "treasure" and found[2].answer == "jewel"


def test_greedy_writer_and_beam_of_one_agree():
  """Law 10: where each thought has one sample, the likeliest, nothing is left
  to choose."""
  thoughts, answers = maze()
  likeliest = {k: [max(v, key=lambda c: c[1])] for k, v in thoughts.items()}
  script = Script(likeliest, answers)
  (beam,) = solve(search.tree_of_thoughts(1, 1), script, evaluate="random")
  plain = Script({}, {"maze:": [("go a\ngo dead\nout wall", 0.0, 0.0),
                                ("out lucky", -4.0, 0.0)]})
  (greedy,) = solve(search.greedy(), plain)
  assert beam.text == greedy.text and beam.answer == greedy.answer == "wall"
  assert plain.calls == [("greedy", 1)]
  assert beam.cost.generated_tokens == greedy.cost.generated_tokens


def test_equal_states_merge_and_the_better_one_stays():
  thoughts, answers = maze()
  thoughts["maze:"] = [go("a", -1.0, 1.0), go("a", -2.0, 3.0),
                       go("b", -1.0, 2.0), go("a", -1.0, 3.5)]
  script = Script(thoughts, answers)
  (result,) = solve(search.tree_of_thoughts(2, (4, 1)), script)
  first = [n for n in result.nodes if n.depth == 1]
  assert [n.status for n in first] == ["merged", "merged", "kept", "kept"]
  assert script.calls[1] == ("grow", 2)  # Not three times a.
  assert result.cost.generated_tokens == total(script)
  apart = search.Beam(3, (4, 1), merge=False)
  (result,) = solve(apart, Script(thoughts, answers))
  assert [n.status for n in result.nodes[:4]] == [
      "pruned", "kept", "kept", "kept"]


def test_a_state_that_comes_again_deeper_is_another_one():
  """Back at a with one thought less to go: it has to be looked at again."""
  thoughts = {"maze:": [go("a", value=2.0), go("b", value=3.0)],
              "maze:go b\n": [go("a", value=1.0)]}
  answers = {"maze:go b\ngo a\n": [("out late", 0.0, 0.0)]}
  (result,) = solve(
      search.tree_of_thoughts(1, (2, 1)), Script(thoughts, answers))
  assert [n.status for n in result.nodes] == ["pruned", "kept", "kept"]
  assert result.answer == "late"


def test_unreadable_thoughts_are_dropped_but_paid_for():
  script = writer()
  (result,) = solve(search.tree_of_thoughts(3, 3), script)
  second = [n for n in result.nodes if n.depth == 2]
  gibberish = [n for n in second if n.text == "gibberish\n"]
  # Their value of 9 is the highest of all, and does not help them.
  assert {n.status for n in gibberish} == {"unreadable"}
  assert len(gibberish) == 3 and all(n.state is None for n in gibberish)
  spent = sum(len(n.text) for n in result.nodes) + len("out treasure")
  assert result.cost.generated_tokens == spent == total(script)
  assert result.cost.forward_tokens == spent + len("maze") + 2  # The prompt.
  assert result.cost.flops == 10.0 * result.cost.forward_tokens


def test_when_nothing_is_readable_the_prompt_is_answered():
  script = Script(
      {"maze:": [("hm\n", -1.0, 5.0)], "other:": [go("a")],
       "other:go a\n": [go("m")]},
      {"other:go a\ngo m\n": [("out there", 0.0, 0.0)],
       "maze:": [("out luckily", -2.0, 0.0), ("out at once", -1.0, 0.0)]})
  lost, found = solve(
      search.tree_of_thoughts(2, 2), script, [Maze(), Maze("other")])
  assert (lost.answer, lost.text, lost.path) == ("at", "out at once", [])
  assert {n.status for n in lost.nodes} == {"unreadable"}
  assert lost.cost.generated_tokens == len("hm\nhm\nout at once")
  assert found.answer == "there"


STRATEGIES = {
    "greedy": search.greedy(), "best of 3": search.best_of_n(3),
    "vote of 4": search.self_consistency(4),
    "log-prob of 2": search.Samples(2, choose="log_prob"),
    "token beam": search.token_beam(3),
    "stream": search.Samples(greedy=True, prefix="", max_tokens=50),
    "beam": search.tree_of_thoughts(2, 2),
    "narrow beam": search.tree_of_thoughts(1, (3, 2)),
    "depth first": search.depth_first(3, accept=1.0, expansions=4),
    "best first": search.best_first((3, 2), width=2, expansions=3),
    "mcts": search.mcts(2, simulations=7),
}


@pytest.mark.parametrize("evaluate", ["value", "random", "log_prob"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_one_answer_per_problem_and_every_token_counted(name, evaluate):
  names = ("maze", "labyrinth", "warren")
  script = writer(*names)
  results = solve(STRATEGIES[name], script, [Maze(n) for n in names],
                  evaluate=evaluate)
  assert len(results) == 3
  assert sum(r.cost.generated_tokens for r in results) == total(script)
  for result, problem in zip(results, names):
    spent = result.to_dict()["cost"]
    assert (spent["forward_tokens"] - spent["generated_tokens"]
            == len(problem) + 2)
    assert spent["flops"] == 10.0 * spent["forward_tokens"]
    whole = "".join(result.nodes[i].text for i in result.path)
    assert result.text.startswith(whole)
    assert result.answer == Maze().read_answer(result.text[len(whole):])
  if evaluate != "random":
    # The same problem beside others, and elsewhere among them: the same answer.
    others = ("warren", "flat", "maze")
    script.thoughts["flat:"] = [go("x", value=1.0), go("y", value=2.0)]
    script.answers |= dict.fromkeys(
        ["flat:", "flat:go x\n", "flat:go y\n"], [("out early", 0.0, 0.0)])
    again = solve(
        STRATEGIES[name], script,
        [Maze(n, num_thoughts=1 + (n != "flat")) for n in others],
        evaluate=evaluate)
    assert again[2].text == results[0].text
    assert (again[2].cost.generated_tokens
            == results[0].cost.generated_tokens)
    assert [n.score for n in again[2].nodes] == [
        n.score for n in results[0].nodes]


def test_problems_of_different_depth_are_searched_together():
  """A shallow problem's best thought must survive until the answers."""
  thoughts, answers = maze()
  thoughts["flat:"] = [go("q", -1.0, 0.0), go("p", -1.0, 1.0)]
  answers["flat:go p\n"] = [("out early", 0.0, 0.0)]
  for strategy in (search.tree_of_thoughts(2, 3), search.depth_first(3),
                   search.best_first(3), search.mcts(3, simulations=12)):
    deep, flat = solve(strategy, Script(thoughts, answers),
                       [Maze(), Maze("flat", num_thoughts=1)])
    assert (deep.answer, flat.answer) == ("treasure", "early")
    assert flat.text == "go p\nout early"


@pytest.mark.parametrize("choose, want", [
    ("vote", "wrong"), ("log_prob", "lucky"), ("first", "crazy")])
def test_plain_sampling_chooses_as_it_says(choose, want):
  answers = {"maze:": [
      ("out crazy", -3.0, 9.0), ("nothing", -0.1, 9.0),
      ("out lucky", -0.3, -1.0), ("out wrong", -2.0, -1.0),
      ("out wrong", -2.0, -1.0)]}
  (result,) = solve(search.Samples(5, choose=choose), Script({}, answers))
  assert (result.answer, result.text) == (want, f"out {want}")
  assert search.self_consistency(5) == search.Samples(5, choose="vote")


def test_random_values_follow_the_key():
  run = lambda seed: solve(
      search.tree_of_thoughts(1, 3), writer(), key=jax.random.key(seed),
      evaluate="random")[0]
  runs = [[n.score for n in run(seed).nodes] for seed in (0, 0, 1)]
  assert runs[0] == runs[1] and runs[0] != runs[2]
  # They do not look at what they score.
  assert len({run(seed).answer for seed in range(12)}) > 1


def test_a_chain_is_worth_its_weakest_line():
  """The value head sees a's slip at once and has forgotten it a line later."""
  thoughts = {"maze:": [go("a", -1.0, -2.0), go("b", -1.0, 1.0)],
              "maze:go a\n": [go("x", -1.0, 9.0)],
              "maze:go b\n": [go("y", -1.0, 3.0)]}
  answers = {"maze:go a\ngo x\n": [("out slipped", 0.0, 8.0)],
             "maze:go b\ngo y\n": [("out sound", 0.0, 2.0)]}
  run = lambda strategy, **how: solve(
      strategy, Script(thoughts, answers), **how)[0]
  for strategy in search.best_of_n(2), search.tree_of_thoughts(2, (2, 1)):
    assert run(strategy).answer == "sound"
    assert run(strategy, evaluate="last_value").answer == "slipped"
  assert [n.weakest for n in run(search.best_of_n(2)).nodes] == [-2, 1, 1, -2]


def test_best_of_n_samples_apart_and_reads_every_answer():
  """Nothing merges, nothing is pruned, and an answer has a value of its own."""
  thoughts = {"maze:": [go("a", -1.0, 5.0), go("a", -1.0, 5.0),
                        go("b", -1.0, 1.0)],
              "maze:go a\n": [go("x", -1.0, 5.0)],
              "maze:go b\n": [go("y", -1.0, 1.0)]}
  answers = {"maze:go a\ngo x\n": [("no idea", 0.0, 9.0),],
             "maze:go b\ngo y\n": [("out late", 0.0, -1.0)]}
  script = Script(thoughts, answers)
  (result,) = solve(search.best_of_n(3), script)
  assert script.calls == [("grow", 3), ("grow", 3), ("greedy", 3)]
  assert result.answer == "late"  # What cannot be read is no answer.
  assert {n.status for n in result.nodes} == {"kept"}
  ends = [(result.nodes[e.leaf].state, e.text, e.answer) for e in result.ends]
  assert sorted(ends, key=str) == [
      ("x", "no idea", None), ("x", "no idea", None), ("y", "out late", "late")]
  assert result.cost.generated_tokens == total(script)


def test_the_whole_tree_is_written_to_all_its_answers():
  script = writer()
  (result,) = solve(strategies.whole_tree((3, 2)), script)
  assert script.calls == [("grow", 3), ("grow", 6), ("greedy", 6)]
  path = lambda e: "".join(
      result.nodes[i].state for i in search.path_to(result.nodes, e.leaf))
  assert {path(e): e.answer for e in result.ends} == {
      "am": "wrong", "by": "treasure", "cn": "wrong", "adead": "wall",
      "bdead": "wall", "cdead": "wall"}
  assert {n.status for n in result.nodes} == {"kept"}
  assert result.cost.generated_tokens == total(script)


@pytest.mark.parametrize("make", [
    lambda: search.tree_of_thoughts(0, 3),
    lambda: search.tree_of_thoughts(1, 0),
    lambda: search.tree_of_thoughts(1, ()), lambda: search.best_of_n(0),
    lambda: search.self_consistency(0), lambda: search.token_beam(0),
    lambda: search.revision(0), lambda: search.revision(2, choose="best"),
    lambda: search.depth_first(2, prune=1.5),
    lambda: search.best_first(2, accept=-0.1),
    lambda: search.best_first(2, width=0), lambda: search.mcts(0),
    lambda: search.mcts(2, simulations=0), lambda: search.mcts(2, c=-1.0),
    lambda: search.Samples(2, choose="best")])
def test_impossible_strategies_are_refused(make):
  with pytest.raises(UserError):
    make()
