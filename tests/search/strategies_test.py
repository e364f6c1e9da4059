"""Strategies on a scripted writer: what they find, keep, drop and count."""

import jax
import numpy as np
import pytest

from lm import search
from lm.data import vocab as vocab_lib
from lm.search import evaluate
from lm.types import UserError
from tests.search import scripted
from tests.search.scripted import Maze

VOCAB = vocab_lib.ByteVocab()
KEY = jax.random.key(0)


def go(name, log_prob, value):
  return (f"go {name}\n", log_prob, value)


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
  return scripted.Script(thoughts, answers, VOCAB)


def total(script):
  return sum(map(len, script.written))


@pytest.mark.parametrize("b", [1, 2, 3])
def test_beam_finds_the_planted_path(b):
  script = writer()
  (result,) = search.tree_of_thoughts(b, 3)(script, [Maze()], KEY)
  assert result.answer == "treasure"
  assert result.text == "go b\ngo y\nout treasure"
  assert [result.nodes[i].text for i in result.path] == ["go b\n", "go y\n"]
  assert result.cost.generated_tokens == total(script)
  # Three thoughts from the start, three from each kept one, one answer.
  assert [c[0] for c in script.calls] == [3, 3 * b, 1]


def test_beam_of_log_probs_is_led_astray():
  (result,) = search.tree_of_thoughts(1, 3, evaluate="log_prob")(
      writer(), [Maze()], KEY)
  assert result.text == "go a\ngo dead\nout wall"
  # Paths add up: from b at -3 everything is worse than from a at -0.1.
  scores = [n.log_prob for n in result.nodes]
  np.testing.assert_allclose(scores, [-.1, -3., -1., -.6, -.3, -2.1])


def test_too_narrow_a_beam_misses_a_late_treasure():
  """c leads to it, but b looks better at first: width must matter."""
  thoughts, answers = maze()
  thoughts["maze:go b\n"] = [go("y", -0.5, 0.5)]
  thoughts["maze:go c\n"] = [go("z", -0.5, 20.0)]
  answers["maze:go c\ngo z\n"] = [("out jewel", 0.0, 0.0)]
  found = {}
  for b in (1, 2):
    script = scripted.Script(thoughts, answers, VOCAB)
    (found[b],) = search.tree_of_thoughts(b, 3)(script, [Maze()], KEY)
  assert found[1].answer == "treasure" and found[2].answer == "jewel"


def test_greedy_writer_and_beam_of_one_agree():
  """Law 10: where each thought has one sample, the likeliest, nothing is left
  to choose."""
  thoughts, answers = maze()
  likeliest = {k: [max(v, key=lambda c: c[1])] for k, v in thoughts.items()}
  script = scripted.Script(likeliest, answers, VOCAB)
  (beam,) = search.tree_of_thoughts(1, 1, evaluate="random")(
      script, [Maze()], KEY)
  plain = scripted.Script(
      {}, {"maze:": [("go a\ngo dead\nout wall", 0.0, 0.0),
                     ("out lucky", -4.0, 0.0)]}, VOCAB)
  (greedy,) = search.greedy()(plain, [Maze()], KEY)
  assert beam.text == greedy.text and beam.answer == greedy.answer == "wall"
  assert plain.calls == [(1, True, False)]
  assert beam.cost.generated_tokens == greedy.cost.generated_tokens


def test_equal_states_merge_and_the_better_one_stays():
  thoughts, answers = maze()
  thoughts["maze:"] = [go("a", -1.0, 1.0), go("a", -2.0, 3.0),
                       go("b", -1.0, 2.0), go("a", -1.0, 3.5)]
  script = scripted.Script(thoughts, answers, VOCAB)
  (result,) = search.tree_of_thoughts(2, (4, 1))(script, [Maze()], KEY)
  first = [n for n in result.nodes if n.depth == 1]
  assert [n.status for n in first] == ["merged", "merged", "kept", "kept"]
  assert script.calls[1][0] == 2  # Not three times a.
  assert result.cost.generated_tokens == total(script)
  apart = search.Beam(3, (4, 1), evaluate.value_head, merge=False)
  (result,) = apart(
      scripted.Script(thoughts, answers, VOCAB), [Maze()], KEY)
  assert [n.status for n in result.nodes[:4]] == [
      "pruned", "kept", "kept", "kept"]


def test_unreadable_thoughts_are_dropped_but_paid_for():
  script = writer()
  (result,) = search.tree_of_thoughts(3, 3)(script, [Maze()], KEY)
  second = [n for n in result.nodes if n.depth == 2]
  gibberish = [n for n in second if n.text == "gibberish\n"]
  # Their value of 9 is the highest of all, and does not help them.
  assert {n.status for n in gibberish} == {"unreadable"}
  assert len(gibberish) == 3 and all(n.state is None for n in gibberish)
  spent = sum(len(n.text) for n in result.nodes) + len("out treasure")
  assert result.cost.generated_tokens == spent == total(script)
  assert result.cost.flops > 10.0 * spent  # The prompt was read too.
  assert result.cost.forward_tokens == spent + len("maze") + 2


def test_when_nothing_is_readable_there_is_one_empty_answer():
  script = scripted.Script(
      {"maze:": [("hm\n", -1.0, 5.0)], "other:": [go("a", -1.0, 0.0)],
       "other:go a\n": [go("m", -1.0, 0.0)]},
      {"other:go a\ngo m\n": [("out there", 0.0, 0.0)]}, VOCAB)
  lost, found = search.tree_of_thoughts(2, 2)(
      script, [Maze(), Maze("other")], KEY)
  assert (lost.answer, lost.path) == (None, [])
  assert lost.cost.generated_tokens == 2 * len("hm\n")
  assert found.answer == "there"


def strategies():
  return [search.greedy(), search.best_of_n(3), search.self_consistency(4),
          search.Samples(2, choose="log_prob"),
          search.tree_of_thoughts(2, 2), search.tree_of_thoughts(1, (3, 2)),
          search.tree_of_thoughts(2, 3, evaluate="random"),
          search.tree_of_thoughts(2, 3, evaluate="log_prob")]


@pytest.mark.parametrize(
    "strategy", strategies(), ids=lambda s: type(s).__name__)
def test_one_answer_per_problem_and_every_token_counted(strategy):
  names = ("maze", "labyrinth", "warren")
  script = writer(*names)
  results = strategy(script, [Maze(n) for n in names], KEY)
  assert len(results) == 3
  assert all(r.answer is None or isinstance(r.answer, str) for r in results)
  assert (sum(r.cost.generated_tokens for r in results) == total(script))
  for result in results:
    spent = result.to_dict()["cost"]
    assert spent["forward_tokens"] > spent["generated_tokens"] > 0
  # The same problem under another name, beside others: the same answer.
  alone = strategy(writer("maze"), [Maze()], KEY)
  if "random" not in str(strategy):
    assert alone[0].text == results[0].text
    assert (alone[0].cost.generated_tokens
            == results[0].cost.generated_tokens)


def test_problems_of_different_depth_are_searched_together():
  """A shallow problem's best thought must survive until the answers."""
  thoughts, answers = maze()
  thoughts["flat:"] = [go("q", -1.0, 0.0), go("p", -1.0, 1.0)]
  answers["flat:go p\n"] = [("out early", 0.0, 0.0)]
  deep, flat = search.tree_of_thoughts(2, 3)(
      scripted.Script(thoughts, answers, VOCAB),
      [Maze(), Maze("flat", num_thoughts=1)], KEY)
  assert (deep.answer, flat.answer) == ("treasure", "early")
  assert flat.text == "go p\nout early"


def test_plain_sampling_chooses_as_it_says():
  choose = {
      "vote": "wrong",  # Two of three.
      "log_prob": "wrong", "first": "wrong"}
  for how, want in choose.items():
    (result,) = search.Samples(4, choose=how)(writer(), [Maze()], KEY)
    assert result.answer == want, how
    assert result.text == f"out {want}"
  assert search.self_consistency(5) == search.Samples(5, choose="vote")


def test_random_values_follow_the_key():
  beam = search.tree_of_thoughts(1, 3, evaluate="random")
  runs = [[n.score for n in beam(writer(), [Maze()], jax.random.key(k))[0]
           .nodes] for k in (0, 0, 1)]
  assert runs[0] == runs[1] and runs[0] != runs[2]
  # They do not look at what they score.
  found = {beam(writer(), [Maze()], jax.random.key(k))[0].answer
           for k in range(12)}
  assert len(found) > 1


def test_a_chain_is_worth_its_weakest_line():
  """The value head sees a's slip at once and has forgotten it a line later."""
  thoughts = {"maze:": [go("a", -1.0, -2.0), go("b", -1.0, 1.0)],
              "maze:go a\n": [go("x", -1.0, 9.0)],
              "maze:go b\n": [go("y", -1.0, 3.0)]}
  answers = {"maze:go a\ngo x\n": [("out slipped", 0.0, 8.0)],
             "maze:go b\ngo y\n": [("out sound", 0.0, 2.0)]}
  run = lambda strategy: strategy(
      scripted.Script(thoughts, answers, VOCAB), [Maze()], KEY)[0]
  for make in (search.best_of_n, lambda n, **kw: search.tree_of_thoughts(
      2, (n, 1), **kw)):
    assert run(make(2)).answer == "sound"
    assert run(make(2, evaluate="last_value")).answer == "slipped"
  assert [n.weakest for n in run(search.best_of_n(2)).nodes] == [-2, 1, 1, -2]


def test_best_of_n_samples_apart_and_reads_every_answer():
  """Nothing merges, nothing is pruned, and an answer has a value of its own."""
  thoughts = {"maze:": [go("a", -1.0, 5.0), go("a", -1.0, 5.0),
                        go("b", -1.0, 1.0)],
              "maze:go a\n": [go("x", -1.0, 5.0)],
              "maze:go b\n": [go("y", -1.0, 1.0)]}
  answers = {"maze:go a\ngo x\n": [("no idea", 0.0, 9.0),],
             "maze:go b\ngo y\n": [("out late", 0.0, -1.0)]}
  script = scripted.Script(thoughts, answers, VOCAB)
  (result,) = search.best_of_n(3)(script, [Maze()], KEY)
  assert [c[0] for c in script.calls] == [3, 3, 3]
  assert result.answer == "late"  # What cannot be read is no answer.
  assert {n.status for n in result.nodes} == {"kept"}
  assert result.cost.generated_tokens == total(script)


@pytest.mark.parametrize("make", [
    lambda: search.tree_of_thoughts(0, 3),
    lambda: search.tree_of_thoughts(1, 0),
    lambda: search.tree_of_thoughts(1, ()), lambda: search.best_of_n(0),
    lambda: search.tree_of_thoughts(1, 1, evaluate="oracle"),
    lambda: search.Samples(2, choose="best")])
def test_impossible_strategies_are_refused(make):
  with pytest.raises(UserError):
    make()
