"""Entries of config.methods and config.tasks: what they mean, and refusals."""

import dataclasses

from lm import search
from lm.data import problems as problems_lib
from lm.data.problems import game24
from lm.launch import methods
from lm.types import UserError
import pytest

from experiments.search import findings
from experiments.search import tasks

KINDS = {
    "greedy": (dict(), search.greedy(), "greedy"),
    "self_consistency": (dict(n=3), search.self_consistency(3),
                         "self_consistency"),
    "best_of_n": (dict(n=3), search.best_of_n(3), "best_of_n"),
    "token_beam": (dict(b=4), search.token_beam(4), "token_beam"),
    "tot": (dict(b=2, k=[3, 1]), search.tree_of_thoughts(2, (3, 1)),
            "tot_value"),
    "whole_tree": (dict(k=[3, 1]), search.whole_tree((3, 1)), "whole_tree"),
    "depth_first": (dict(k=2, prune=0.2), search.depth_first(2, prune=0.2),
                    "depth_first"),
    "best_first": (dict(k=2, width=3), search.best_first(2, width=3),
                   "best_first"),
    "mcts": (dict(k=(4, 2), simulations=5), search.mcts((4, 2), simulations=5),
             "mcts"),
    "stream": (dict(max_tokens=50), search.stream(max_tokens=50), "stream"),
    "revision": (dict(attempts=3), search.revision(3), "revision"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_strategy(kind):
  fields, strategy, family = KINDS[kind]
  made = methods.make("mine", dict(kind=kind, **fields))
  assert made.strategy == strategy
  assert made.family == family
  assert (made.label, made.budget) == ("mine", search.Budget())
  assert set(KINDS) == set(methods.MAKERS)


def test_judges_names_and_budgets():
  made = methods.make(
      "mine", dict(kind="tot", b=1, k=2, merge=False, evaluate="log_prob",
                   label="by policy", budget=dict(generated_tokens=64)),
      dict(generated_tokens=9, flops=1e9, seconds=None))
  assert made.strategy == search.Beam(1, 2, merge=False)
  assert (made.family, made.label) == ("tot_log_prob", "by policy")
  # Its own budget goes before that of all.
  assert made.budget == search.Budget(generated_tokens=64, flops=1e9)


@pytest.mark.parametrize("fields, words", [
    (dict(kind="tott"), "did you mean 'tot'?"),
    (dict(), "methods.m.kind=None"),
    (dict(kind="tot", b=2), "missing a required argument: 'k'"),
    (dict(kind="mcts", k=2, simulation=3), "did you mean 'simulations'?"),
    (dict(kind="tot", b=0, k=2), "methods.m: b=0: must be a whole number"),
    (dict(kind="best_of_n", n="many"), "config.methods.m: b=many"),
    (dict(kind="mcts", k=2, simulations=2.5), "must be a whole number"),
    (dict(kind="mcts", k=2, c="one"), "config.methods.m: "),
    (dict(kind="tot", b=2, k=2, evaluate="valeu"), "did you mean 'value'?"),
    (dict(kind="greedy", evaluate="value"), "no field 'evaluate'"),
    (dict(kind="greedy", budget=dict(generated_token=3)),
     "m.budget has no field 'generated_token': did you mean"),
    (dict(kind="greedy", budget=dict(flops="few")), "flops='few': give a numb"),
    (dict(kind="greedy", budget=dict(seconds=0)), "budget.seconds=0"),
])
def test_bad_methods_are_refused(fields, words):
  with pytest.raises(UserError) as caught:
    methods.make("m", fields)
  assert words in str(caught.value) and "\n" not in str(caught.value)


class Bare:
  """A problem that no solver knows."""
  num_thoughts = 2


def test_methods_that_do_not_fit_are_refused():
  game = game24.Game24((4, 9, 10, 13))
  tot = methods.make("t", dict(kind="tot", b=1, k=1))
  methods.check(tot, [game], has_values=True)
  for fields in (dict(kind="best_of_n", n=2),
                 dict(kind="tot", b=1, k=1, evaluate="rollouts"),
                 dict(kind="revision", choose="value")):
    with pytest.raises(UserError, match="t needs a value head, which x/1"):
      methods.check(methods.make("t", fields), [game], has_values=False,
                    model="x/1")
  for fields in (dict(kind="greedy"), dict(kind="revision"),
                 dict(kind="tot", b=1, k=1, evaluate="log_prob")):
    methods.check(methods.make("t", fields), [game], has_values=False)
  oracle = methods.make("t", dict(kind="mcts", k=1, evaluate="oracle"))
  with pytest.raises(UserError, match=r"methods\.t: .*winnable"):
    methods.check(oracle, [Bare()], has_values=True)


CONFIG = dict(task="game24", dials={}, split="test", problems=3, tasks={})


def test_one_task_is_game24_in_order_of_rank():
  job, = tasks.jobs(CONFIG, ["a", "b"])
  assert [p.numbers for p in job.problems] == list(game24.test_puzzles()[:3])
  assert (job.name, job.methods, job.ranked) == ("game24", ("a", "b"), True)


def test_several_tasks_with_methods_of_their_own():
  specs = dict(
      low=dict(task="countdown", dials=dict(highest=20), split="test_targets",
               count=4, methods=("tot_*", "greedy")),
      star=dict(task="star_graph", dials=dict(arms=3, length=None),
                split="test", count=2, methods=["*"]))
  low, star = tasks.jobs({**CONFIG, "tasks": specs},
                         ["greedy", "vote", "tot_1", "tot_2"])
  assert low.methods == ("greedy", "tot_1", "tot_2")
  assert len(set(p.prompt() for p in low.problems)) == 4
  assert max(max(p.numbers) for p in low.problems) <= 20
  assert [len(p.edges) for p in star.problems] == [15, 15]
  assert not low.ranked
  # Whatever the seed of training, the problems are the same.
  again = tasks.jobs({**CONFIG, "tasks": specs, "seed": 5}, ["greedy", "tot_1"])
  assert again[0].problems == low.problems


SPEC = dict(task="countdown", dials={}, split="test", count=2, methods=("*",))


@pytest.mark.parametrize("change, words", [
    (dict(task="countdwn"), "did you mean 'countdown'?"),
    (dict(split="tests"), "did you mean 'test'?"),
    (dict(dials=dict(number=4)), "did you mean 'numbers'?"),
    (dict(count=0), "x: 0 problems"),
    (dict(task="game24", count=101), "game24 has 100 test games"),
    (dict(methods=("gredy",)), "did you mean 'greedy'?"),
    (dict(methods=()), "x.methods is empty"),
    (dict(problems=3), "x has no field 'problems'"),
])
def test_bad_tasks_are_refused(change, words):
  with pytest.raises(UserError) as caught:
    tasks.jobs({**CONFIG, "tasks": dict(x=SPEC | change)}, ["greedy"])
  assert words in str(caught.value) and "\n" not in str(caught.value)


def node(parent, depth, text, left, score):
  return search.Node(parent, depth, text, left, -1.0, score, score, score)


def test_reliability_holds_leaves_against_the_judge():
  game = game24.Game24((4, 9, 10, 13))
  lines = ("13 - 9 = 4 (left: 4 4 10)\n", "10 - 4 = 6 (left: 4 6)\n",
           "6 * 4 = 24 (left: 24)\n", "6 - 4 = 2 (left: 2)\n",
           "6 * 4 = 34 (left: 24)\n")
  nodes = [node(None, 1, lines[0], (4, 4, 10), 3.0),
           node(0, 2, lines[1], (4, 6), 2.0),
           node(1, 3, lines[2], (24,), 1.0), node(1, 3, lines[3], (2,), -1.0),
           node(1, 3, lines[4], (24,), 0.0),  # A lie that reads well.
           node(1, 3, lines[2], (24,), 1.0), node(1, 3, "4 *", None, 9.0)]
  result = search.Result(None, "", search.Cost(), nodes)
  job = tasks.Job("game24", problems_lib.make_task("game24"), "test", [game],
                  ("t",))
  method = methods.make("t", dict(kind="tot", b=1, k=1))
  found = findings.reliability(job, method, [result])
  assert found["outcomes"] == [1.0, 0.0, 0.0]
  assert found["predicted"] == pytest.approx([0.7310586, 0.2689414, 0.5])
  assert found["brier"] == pytest.approx(
      (2 * 0.2689414 ** 2 + 0.25) / 3, abs=1e-6)
  blind = dataclasses.replace(method, evaluate="random")
  assert findings.reliability(job, blind, [result]) == {}


def test_the_hardest_are_the_last_by_rank_or_what_few_solve():
  job, = tasks.jobs(CONFIG, ["a", "b"])
  results = [search.Result(str(i), "", search.Cost()) for i in range(3)]
  outcomes = {"a": [True, True, False], "b": [False, True, False]}
  found = findings.hardest(job, results, outcomes, of="a", count=2)
  assert [(t["rank"], t["correct"]) for t in found] == [
      (902, True), (901, True)]
  other = dataclasses.replace(job, split="train")
  found = findings.hardest(other, results, outcomes, of="a", count=3)
  assert [t["result"]["answer"] for t in found] == ["0", "1", "2"]
