"""The tree of thoughts as arrays on the device, and what a search leaves.

P problems have C nodes each, fixed from the start; node 0 is the prompt. A node
is a thought of up to M tokens; its index is also the slot of its keys and
values in `memory.Memory`. Every function is pure, for all problems at once,
and does what the slow tree of tests/search/slow_tree.py does one by one. A
node index of -1 means none.
"""

import functools

from flax import struct
import jax
import jax.numpy as jnp

# Of a node: not in use, may be continued, chosen, claims a state that another
# node stands for, cannot be read, given up.
FREE, OPEN, KEPT, MERGED, UNREADABLE, PRUNED = range(6)
STATUS = ("free", "pruned", "kept", "merged", "unreadable", "pruned")


@struct.dataclass
class Tree:
  """P problems, C nodes each, thoughts of up to M tokens.

  Attributes:
    parent_PC: the node that it continues; 0 for the root itself.
    depth_PC: thoughts so far, this one included.
    tokens_PCM: the thought's tokens.
    num_PC: how many there are.
    prior_PC: log-probability of the thought under the model.
    log_prob_PC: of the path.
    value_PC: scalar-head logit after the thought.
    weakest_PC: the lowest value of the path.
    score_PC: what the evaluator gave.
    state_PC: number of the state that it claims (equal states, equal numbers
      within a problem); -1: none.
    status_PC: FREE, OPEN, ...
    visits_PC: how often a value was backed up through it.
    total_PC: the sum of those values.
    count_P: nodes in use.
  """

  parent_PC: jax.Array
  depth_PC: jax.Array
  tokens_PCM: jax.Array
  num_PC: jax.Array
  prior_PC: jax.Array
  log_prob_PC: jax.Array
  value_PC: jax.Array
  weakest_PC: jax.Array
  score_PC: jax.Array
  state_PC: jax.Array
  status_PC: jax.Array
  visits_PC: jax.Array
  total_PC: jax.Array
  count_P: jax.Array

  @property
  def capacity(self) -> int:
    return self.parent_PC.shape[1]


def empty(problems: int, capacity: int, tokens: int) -> Tree:
  """Trees that hold nothing but their roots."""
  ints = lambda *more: jnp.zeros((problems, capacity, *more), jnp.int32)
  floats = lambda: jnp.zeros((problems, capacity), jnp.float32)
  return Tree(
      parent_PC=ints(), depth_PC=ints(), tokens_PCM=ints(tokens),
      num_PC=ints(), prior_PC=floats(), log_prob_PC=floats(),
      value_PC=floats(), weakest_PC=floats().at[:, 0].set(jnp.inf),
      score_PC=floats(), state_PC=ints() - 1,
      status_PC=ints().at[:, 0].set(KEPT), visits_PC=ints(), total_PC=floats(),
      count_P=jnp.ones((problems,), jnp.int32))


def _take(x_PC, nodes_PR):
  return jnp.take_along_axis(x_PC, jnp.maximum(nodes_PR, 0), axis=1)


def _put(x_PC, nodes_PR, values_PR):
  """Sets the nodes that are not -1."""
  rows = jnp.arange(len(x_PC))[:, None]
  there = jnp.where(nodes_PR < 0, x_PC.shape[1], nodes_PR)
  return x_PC.at[rows, there].set(values_PR, mode="drop")


@jax.jit
def slots(tree: Tree, parents_PR):
  """Where the next thoughts of `parents_PR` go: [P, R], -1 without room."""
  live = parents_PR >= 0
  found = tree.count_P[:, None] + jnp.cumsum(live, axis=1) - 1
  return jnp.where(live & (found < tree.capacity), found, -1)


@jax.jit
def add(tree: Tree, parents_PR, slots_PR, tokens_PRM, num_PR, prior_PR,
        value_PR) -> Tree:
  """The tree with what `parents_PR` were continued by, at `slots_PR`."""
  put = lambda name, values: _put(getattr(tree, name), slots_PR, values)
  return tree.replace(
      parent_PC=put("parent_PC", parents_PR),
      depth_PC=put("depth_PC", _take(tree.depth_PC, parents_PR) + 1),
      tokens_PCM=put("tokens_PCM", tokens_PRM),
      num_PC=put("num_PC", num_PR), prior_PC=put("prior_PC", prior_PR),
      log_prob_PC=put("log_prob_PC",
                      _take(tree.log_prob_PC, parents_PR) + prior_PR),
      value_PC=put("value_PC", value_PR),
      weakest_PC=put("weakest_PC", jnp.minimum(
          _take(tree.weakest_PC, parents_PR), value_PR)),
      count_P=tree.count_P + jnp.sum(slots_PR >= 0, axis=1))


@functools.partial(jax.jit, static_argnames="merge")
def settle(tree: Tree, slots_PR, states_PR, scores_PR, *, merge: bool) -> Tree:
  """What the new thoughts at `slots_PR` claim and are worth.

  Those without a state (-1) are unreadable. With `merge`, of thoughts that
  claim one state the best stays (of equals the oldest): the others are merged
  into it. One that was already chosen stays beside a better newcomer.
  """
  old_PC = tree.status_PC
  state_PC = _put(tree.state_PC, slots_PR, states_PR)
  score_PC = _put(tree.score_PC, slots_PR, scores_PR)
  status_PC = _put(old_PC, slots_PR,
                   jnp.where(states_PR < 0, UNREADABLE, OPEN))
  if merge:
    index = jnp.arange(tree.capacity)
    alive_PC = (status_PC == OPEN) | (status_PC == KEPT)
    new_PR1, index_1C = slots_PR[..., None], index[None, None]
    same_PRC = (states_PR[..., None] == state_PC[:, None]) & (
        (slots_PR >= 0) & (states_PR >= 0))[..., None] & alive_PC[:, None]
    gap_PRC = score_PC[:, None] - scores_PR[..., None]
    worse_PR = jnp.any(same_PRC & (index_1C != new_PR1) & (
        (gap_PRC > 0) | ((gap_PRC == 0) & (index_1C < new_PR1))), axis=-1)
    beaten_PC = jnp.any(same_PRC & (gap_PRC < 0), axis=1)
    # An old one is beaten by any better newcomer; new ones were compared above.
    beaten_PC &= (status_PC == OPEN) & (old_PC == OPEN)
    status_PC = jnp.where(beaten_PC, MERGED, status_PC)
    status_PC = _put(status_PC, jnp.where(worse_PR, slots_PR, -1), MERGED)
  return tree.replace(state_PC=state_PC, score_PC=score_PC, status_PC=status_PC)


@functools.partial(jax.jit, static_argnames="count")
def best(among_PC, *keys_PC, count: int):
  """The `count` best nodes [P, count] among those marked; -1 where none.

  By the first key, then the next; of equals the oldest.
  """
  order = jnp.lexsort((*(-k for k in keys_PC[::-1]), ~among_PC), axis=-1)
  order = order[:, :count]
  found = jnp.where(jnp.take_along_axis(among_PC, order, axis=1), order, -1)
  return jnp.pad(found, ((0, 0), (0, count - order.shape[1])),
                 constant_values=-1)


@functools.partial(jax.jit, static_argnames="status")
def mark(tree: Tree, nodes_PB, *, status: int) -> Tree:
  return tree.replace(status_PC=_put(tree.status_PC, nodes_PB, status))


@jax.jit
def descend(tree: Tree, c: float):
  """From each root by PUCT to a node without living children: [P].

  argmax of Q + c P sqrt(N) / (1 + n) (Silver et al. 2017, methods): Q is the
  mean of what was backed up through the child and of its own probability of
  success, P the softmax of the living siblings' log-probabilities.
  """
  alive_PC = (tree.status_PC == OPEN) | (tree.status_PC == KEPT)
  alive_PC = alive_PC.at[:, 0].set(False)
  q_PC = (tree.total_PC + jax.nn.sigmoid(tree.score_PC)) / (tree.visits_PC + 1)

  def children(now_P):
    return alive_PC & (tree.parent_PC == now_P[:, None])

  def body(now_P):
    mine_PC = children(now_P)
    prior_PC = jax.nn.softmax(
        jnp.where(mine_PC, tree.prior_PC, -jnp.inf), axis=1)
    seen_P1 = _take(tree.visits_PC, now_P[:, None])
    u_PC = q_PC + c * prior_PC * jnp.sqrt(seen_P1) / (1 + tree.visits_PC)
    chosen_P = jnp.argmax(jnp.where(mine_PC, u_PC, -jnp.inf), axis=1)
    return jnp.where(jnp.any(mine_PC, axis=1), chosen_P, now_P)

  return jax.lax.while_loop(
      lambda now_P: jnp.any(children(now_P)), body,
      jnp.zeros(tree.count_P.shape, jnp.int32))


@jax.jit
def backup(tree: Tree, nodes_P, values_P) -> Tree:
  """Adds a value to each node (-1: none) and all that it continues."""
  def body(carry):
    now_P, visits_PC, total_PC = carry
    here_PC = jnp.arange(tree.capacity) == now_P[:, None]
    above_P = _take(tree.parent_PC, now_P[:, None])[:, 0]
    return (jnp.where(now_P > 0, above_P, -1), visits_PC + here_PC,
            total_PC + jnp.where(here_PC, values_P[:, None], 0.0))

  _, visits_PC, total_PC = jax.lax.while_loop(
      lambda carry: jnp.any(carry[0] >= 0), body,
      (nodes_P, tree.visits_PC, tree.total_PC))
  return tree.replace(visits_PC=visits_PC, total_PC=total_PC)
