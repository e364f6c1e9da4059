"""Thinking time against accuracy on the games of the Tree of Thoughts paper.

    python -m experiments.search.run --config=configs/search/demo.py
        --workdir=runs/search/demo --config.init=runs/demo/judge

About three minutes on two cores; results in experiments/search/README.md. A
method's `k` may be one number or one for each of the three thoughts; a method
may have a `budget` of its own.
"""

from ml_collections import config_dict
from ml_collections import ConfigDict

# Samples of each thought at the three depths: wide where every line still has
# a chance, narrow where the value head is sure.
WIDE, WIDER = (24, 4, 2), (48, 5, 2)


def tot(b, k, evaluate="value"):
  names = {"value": "value head", "last_value": "last value",
           "log_prob": "policy log-prob", "random": "random values"}
  ks = k if isinstance(k, int) else ",".join(map(str, k))
  return dict(kind="tot", b=b, k=k, evaluate=evaluate,
              label=f"ToT, {names[evaluate]}, b={b} k={ks}")


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.init = "runs/demo/judge"  # With a value head; {seed} stands for the seed.
  c.value_init = ""  # Another checkpoint of the same shape, for its head.
  c.critic = ""  # A checkpoint that judges where evaluate is "critic".
  c.which = "last"
  c.temperature = 2.0  # Among the tokens that min_p leaves.
  c.min_p = 0.05
  c.line_tokens = 16
  c.answer_tokens = 64
  c.batch = 100  # Problems at a time.
  c.task = "game24"  # Or countdown, words, star_graph.
  c.dials = {}
  c.split = "test"  # Of game24: the paper's games in the order of their ranks.
  c.problems = 100  # How many.
  c.tasks = {}  # Several: NAME=dict(task, dials, split, count, methods).
  # The most that a problem may cost with any method; unset: no limit.
  c.budget = dict(generated_tokens=config_dict.placeholder(int),
                  forward_tokens=config_dict.placeholder(int),
                  flops=config_dict.placeholder(float),
                  seconds=config_dict.placeholder(float))
  c.trees = 6  # How many go into the report.
  c.answer = "tot_value_b5_wide"  # What answers --problems.
  methods = {"greedy": dict(kind="greedy", label="greedy")}
  for n in (5, 16, 40):
    methods[f"best_of_{n}"] = dict(
        kind="best_of_n", n=n, label=f"best of {n}, value head")
    methods[f"vote_{n}"] = dict(
        kind="self_consistency", n=n, label=f"self-consistency, {n}")
  for name, b, k in (("b1_k5", 1, 5), ("b5_k5", 5, 5),
                     ("b5_wide", 5, WIDE), ("b5_wider", 5, WIDER)):
    for evaluate in ("value", "log_prob", "random"):
      methods[f"tot_{evaluate}_{name}"] = tot(b, k, evaluate)
  c.methods = methods
  return c
