"""Evaluators: how promising is a thought? Higher is better.

Each is `evaluate(thoughts) -> scores [P, R]`, given all that a batch of
problems has just written. None but the oracle sees the target, a solver or a
rule of the game; what one asks of the model is paid for like any other token.
"""

import dataclasses

import jax
import numpy as np

from lm.search.budget import Cost
from lm.search.expand import Evaluate, Thoughts, encode
from lm.search.writer import Writer
from lm.types import UserError

_NEVER = -1e9  # The score of what is not worth a look.


def value_head(thoughts: Thoughts) -> np.ndarray:
  """The trained scalar head's logit of success: that of the weakest line.

  A slip that the head saw when it was made is not forgiven because what
  follows is sound (the minimum over steps of 2312.08935, section 3.4).
  """
  return thoughts.weakest_PR


def last_value(thoughts: Thoughts) -> np.ndarray:
  """The scalar head's logit after the last line only."""
  return thoughts.value_PR


def log_prob(thoughts: Thoughts) -> np.ndarray:
  """The policy's own log-probability of the path so far."""
  return thoughts.log_prob_PR


def random(thoughts: Thoughts) -> np.ndarray:
  """A control that knows nothing."""
  return thoughts.expand.rng.random(thoughts.value_PR.shape)


def self_evaluation(thoughts: Thoughts) -> np.ndarray:
  """The model's answer to `problem.question(state)`: log-odds of "yes".

  Each state of a problem is asked about once (2305.10601, section 3, "value
  each state"). What the budget does not allow to ask gets the lowest score.
  """
  expand, vocab = thoughts.expand, thoughts.expand.writer.vocab
  jobs: dict[tuple, list[int]] = {}
  left_P = thoughts.meter.left(thoughts.reserve, sampled=False)
  for p, row in enumerate(thoughts.states):
    for state in row:
      if state is None or (p, state) in expand.asked or (p, state) in jobs:
        continue
      (prompt,) = encode(vocab, [expand.problems[p].question(state)])
      if len(prompt) <= left_P[p]:
        left_P[p] -= len(prompt)
        jobs[p, state] = prompt
  if jobs:
    options = [vocab.encode(word)[0] for word in ("yes", "no")]
    log_probs, costs = expand.writer.choose(list(jobs.values()), options)
    spent = [Cost() for _ in expand.problems]
    for job, (yes, no), cost in zip(jobs, log_probs, costs, strict=True):
      expand.asked[job] = float(yes - no)
      spent[job[0]].add(cost)
    thoughts.meter.charge(spent)
  return _by_state(thoughts, expand.asked)


def rollouts(thoughts: Thoughts, *, count: int = 4) -> np.ndarray:
  """Mean of what the scalar head says at the end of `count` completions.

  Each readable thought is played to its answer; one that gives no answer
  counts 0 (a Monte-Carlo estimate as in 2312.08935, section 3.2, with the head
  in the place of the answer key, which a search has not).
  """
  expand = thoughts.expand
  readable_PR = np.array([[s is not None for s in row]
                          for row in thoughts.states])
  nodes_PR = np.repeat(
      np.where(readable_PR, thoughts.nodes_PR, -1), count, axis=1)
  out = expand.finish(thoughts.tree, nodes_PR, thoughts.meter, greedy=False,
                      reserve=thoughts.reserve)
  answered_PR = np.array([
      [expand.problems[p].read_answer(text) is not None for text in row]
      for p, row in enumerate(out.texts)])
  chance_PR = answered_PR / (1 + np.exp(-np.clip(out.values_PR, -60, 60)))
  mean_PR = chance_PR.reshape(*readable_PR.shape, count).mean(axis=-1)
  return np.log((mean_PR + 1e-6) / (1 - mean_PR + 1e-6))


@dataclasses.dataclass(frozen=True)
class Critic:
  """Values of another model: a reward model, or a value trunk of its own.

  It reads prompt and path again for every thought, and is paid for that. As
  with the head of the same model, a path is worth its weakest line.
  """
  writer: Writer

  @property
  def dearest(self) -> float:
    return self.writer.dearest

  def __call__(self, thoughts: Thoughts) -> np.ndarray:
    expand = thoughts.expand
    left_P = thoughts.meter.left(thoughts.reserve, sampled=False).astype(int)
    tree = jax.device_get(thoughts.tree)
    scores_PR = np.full(thoughts.value_PR.shape, _NEVER)
    jobs, prompts = [], []
    for p, row in enumerate(thoughts.states):
      (prompt,) = encode(self.writer.vocab, [expand.problems[p].prompt()])
      for r, state in enumerate(row):
        node = int(thoughts.nodes_PR[p, r])
        if state is None or node < 0:
          continue
        text = expand.path_text(tree, p, node)
        ids = [*prompt, *self.writer.vocab.encode(text)]
        if len(ids) <= left_P[p]:
          left_P[p] -= len(ids)
          jobs.append((p, r, int(tree.parent_PC[p, node])))
          prompts.append(ids)
    if jobs:
      values, costs = self.writer.judge(prompts)
      spent = [Cost() for _ in expand.problems]
      for (p, r, parent), value, cost in zip(jobs, values, costs, strict=True):
        before = tree.score_PC[p, parent] if parent else np.inf
        scores_PR[p, r] = min(before, value)
        spent[p].add(cost)
      thoughts.meter.charge(spent)
    return scores_PR


def oracle(thoughts: Thoughts) -> np.ndarray:
  """What an exact solver says of the state: an upper bound, not a method."""
  asked = {}
  for p, row in enumerate(thoughts.states):
    for state in row:
      if state is not None and (p, state) not in asked:
        won = thoughts.expand.problems[p].winnable(state)
        asked[p, state] = 10.0 if won else -10.0
  return _by_state(thoughts, asked)


def _by_state(thoughts: Thoughts, scores: dict) -> np.ndarray:
  return np.array([[scores.get((p, s), _NEVER) for s in row]
                   for p, row in enumerate(thoughts.states)])


EVALUATORS: dict[str, Evaluate] = {
    "value": value_head, "last_value": last_value, "log_prob": log_prob,
    "random": random, "self_evaluation": self_evaluation,
    "rollouts": rollouts, "oracle": oracle,
}
OF_VALUES = ("value", "last_value", "rollouts")  # They ask the value head.
# They judge states, of which an answer has none: it is worth its last thought.
_OF_STATES = (self_evaluation, rollouts, oracle)


def of_states(evaluate: Evaluate) -> bool:
  return evaluate in _OF_STATES or isinstance(evaluate, Critic)


_NEEDS = {"self_evaluation": "question", "oracle": "winnable"}


def evaluator(name: str, problems=()) -> Evaluate:
  """The evaluator called `name`, which must fit the problems."""
  if name not in EVALUATORS:
    raise UserError(
        f"unknown evaluator {name!r}: use one of {', '.join(EVALUATORS)}")
  need = _NEEDS.get(name)
  for problem in problems:
    if need and not hasattr(problem, need):
      raise UserError(
          f"evaluator {name} asks for {need}(state), which"
          f" {type(problem).__name__} problems do not have: use another")
  return EVALUATORS[name]
