"""Countdown at several budgets: targets, and inputs, that were held out.

    python -m experiments.search.run --config=configs/search/countdown.py
        --workdir=runs/search/countdown/0
        --config.init=runs/thinkers/countdown/0

A method NAME_B may write B tokens per problem and no more. Held-out targets are
searched by all methods, held-out inputs, and both held out, by those at one
budget. The problems are drawn with results up to 999 on the way, as everywhere;
the thinker has learnt to play up to 199, which solves 97 % of them.
"""

from configs.search import demo
from ml_collections import ConfigDict

# By budget: thoughts kept, and samples of each by depth.
TOT = {512: (5, (30, 2, 2)), 2048: (10, (80, 8, 4)), 4096: (20, (96, 12, 4)),
       8192: (40, (128, 16, 6))}
CONTROLS = ("log_prob", "random", "oracle")


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/thinkers/countdown/{seed}"
  c.task = "countdown"
  c.temperature = 1.0
  c.min_p = 0.1
  c.answer_tokens = 48
  c.batch = 50
  c.answer = "tot_8192"
  methods = {"greedy": dict(kind="greedy", label="greedy")}
  for budget, (b, k) in TOT.items():
    limit = dict(budget=dict(generated_tokens=budget))
    n = budget // 30  # Tokens of an answer.
    methods[f"self_consistency_{budget}"] = dict(
        kind="self_consistency", n=n, **limit,
        label=f"self-consistency, {budget} tokens")
    methods[f"best_of_n_{budget}"] = dict(
        kind="best_of_n", n=n, **limit, label=f"best of n, {budget} tokens")
    methods[f"tot_{budget}"] = dict(
        kind="tot", b=b, k=k, **limit, label=f"tot, {budget} tokens")
    if budget == 4096:
      methods |= {f"tot_{judge}_{budget}": dict(
          kind="tot", b=b, k=k, evaluate=judge, **limit,
          label=f"tot by {judge.replace('_', ' ')}, {budget} tokens")
          for judge in CONTROLS}
  c.methods = methods
  of = lambda split, *names: dict(task="countdown", dials={}, split=split,
                                  count=200, methods=names)
  some = ("greedy", "self_consistency_4096", "best_of_n_4096", "tot_4096")
  c.tasks = {"test_targets": of("test_targets", "*"),
             "test_inputs": of("test_inputs", *some), "test": of("test", *some)}
  return c
