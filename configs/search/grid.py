"""Ways of thinking at equal budgets, on four tasks with one checkpoint.

    python -m experiments.search.run --config=configs/search/grid.py
        --workdir=runs/grid/large/0 --config.init=runs/thinkers/large/0

A method NAME_B may write B tokens per problem and no more (what the control by
self-evaluation reads comes on top); greedy, token beam, stream and revision
have one size each. The widths are such that three thoughts (9 tokens each on
average) and an answer (16) use most of them; where they would use more, the
budget cuts them. The controls are the step beam under another judge at the
budget of 512.

All of it runs on Countdown. The other tasks leave out what says nothing new
there: Game of 24 the further guided searches and the controls, and what its
models have not learnt to write (searches, revisions, verdicts); words and star
graphs also three of the five budgets. Not timed with a trained model yet. `make
grid` runs it for every size and seed; experiments.search.grid makes the tables.
"""

from configs.search import demo
from ml_collections import ConfigDict

BUDGETS = (64, 128, 256, 512, 1024)
CONTROL = 512  # The budget of the controls.
# By budget: thoughts kept, and samples of each by depth.
TOT = {64: (1, (2, 1, 1)), 128: (2, (6, 1, 1)), 256: (5, (14, 1, 1)),
       512: (5, (30, 2, 2)), 1024: (5, (64, 5, 3))}
# For the guided: samples of the first thought and of later ones, and rounds,
# half as many again as the budget pays for: some come back to an end. All three
# have the same, so that they also share what is compiled.
GUIDED = {64: ((2, 1), 9), 128: ((4, 2), 9), 256: ((8, 2), 16),
          512: ((16, 4), 16), 1024: ((32, 6), 22)}
SAMPLE = 46  # Tokens of a whole answer, for self-consistency and best of n.
CONTROLS = ("random", "log_prob", "self_evaluation", "rollouts", "oracle")


def at(budget: int) -> dict:
  """The methods that are compared at one budget of generated tokens."""
  n = max(1, budget // SAMPLE)
  b, k = TOT[budget]
  ks, rounds = GUIDED[budget]
  methods = dict(
      self_consistency=dict(n=n), best_of_n=dict(n=n), tot=dict(b=b, k=k),
      depth_first=dict(k=ks, expansions=rounds, prune=0.1, accept=0.9),
      best_first=dict(k=ks, expansions=rounds, accept=0.9),
      mcts=dict(k=ks, simulations=rounds))
  return {f"{kind}_{budget}": dict(
      kind=kind, label=f"{kind.replace('_', ' ')}, {budget} tokens",
      budget=dict(generated_tokens=budget), **fields)
      for kind, fields in methods.items()}


def control(evaluate: str) -> dict:
  """The step beam under another judge."""
  b, k = TOT[CONTROL]
  if evaluate == "rollouts":  # Four answers for each thought are dear.
    b, k = 1, (2, 1, 1)
  return dict(kind="tot", b=b, k=k, evaluate=evaluate,
              label=f"tot by {evaluate.replace('_', ' ')}, {CONTROL} tokens",
              budget=dict(generated_tokens=CONTROL))


def tasks(count: int) -> dict:
  kinds = ("self_consistency", "best_of_n", "tot", "mcts")
  at_budgets = lambda budgets: (
      "greedy", *(f"{kind}_{b}" for kind in kinds for b in budgets))
  task = lambda name, methods, split="test", **dials: dict(
      task=name, dials=dials, split=split, count=count, methods=methods)
  few = at_budgets((128, CONTROL))
  return dict(
      countdown=task("countdown", ("*",), "test_targets"),
      game24=task("game24", at_budgets(BUDGETS)),
      words=task("words", few, steps=2),
      star_graph=task("star_graph", few, arms=3, length=3))


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/thinkers/large/{seed}"
  c.task = "countdown"  # Of --problems.
  c.temperature = 1.0
  c.min_p = 0.1
  c.batch = 50
  c.answer_tokens = 48
  c.answer = f"tot_{CONTROL}"
  methods = dict(
      greedy=dict(kind="greedy"), token_beam=dict(kind="token_beam", b=4),
      stream=dict(kind="stream"), revision=dict(kind="revision", attempts=3))
  for budget in BUDGETS:
    methods |= at(budget)
  methods |= {f"tot_{e}_{CONTROL}": control(e) for e in CONTROLS}
  c.methods = methods
  c.tasks = tasks(100)
  return c
