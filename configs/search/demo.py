"""Thinking time against accuracy on the games of the Tree of Thoughts paper.

    python -m experiments.search.run --config=configs/search/demo.py
        --workdir=runs/search/demo --config.init=runs/demo/value

About a minute on two cores; results in experiments/search/README.md. A method's
`k` may be one number or one for each of the three thoughts.
"""

from ml_collections import ConfigDict


def _tot(b, k, evaluate="value"):
  names = {"value": "value head", "log_prob": "policy log-prob",
           "random": "random values"}
  ks = k if isinstance(k, int) else ",".join(map(str, k))
  return dict(kind="tot", b=b, k=k, evaluate=evaluate,
              label=f"ToT, {names[evaluate]}, b={b} k={ks}")


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.init = "runs/demo/value"  # With a value head; {seed} stands for the seed.
  c.which = "last"
  c.temperature = 1.0
  c.line_tokens = 16
  c.answer_tokens = 64
  c.batch = 100  # Problems at a time.
  c.trees = 6  # How many go into the report.
  c.answer = "tot_value_b5_k5"  # What answers --problems.
  methods = {"greedy": dict(kind="greedy", label="greedy")}
  for n in (5, 12, 40):
    methods[f"best_of_{n}"] = dict(
        kind="best_of_n", n=n, label=f"best of {n}, value head")
    methods[f"vote_{n}"] = dict(
        kind="self_consistency", n=n, label=f"self-consistency, {n}")
  for b, k in ((1, 5), (3, 4), (5, 5), (5, 10)):
    for evaluate in ("value", "log_prob", "random"):
      methods[f"tot_{evaluate}_b{b}_k{k}"] = _tot(b, k, evaluate)
  methods["tot_value_b5_wide"] = _tot(5, (24, 12, 4))
  c.methods = methods
  return c
