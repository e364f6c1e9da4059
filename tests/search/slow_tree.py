"""The tree of thoughts done slowly: one problem, dicts, lists and loops.

It defines what `lm.search.tree` computes for all problems at once.
"""

import math

FREE, OPEN, KEPT, MERGED, UNREADABLE, PRUNED = range(6)
ALIVE = (OPEN, KEPT)


def sigmoid(x):
  return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class SlowTree:
  """One problem; a node is a dict, a FREE one is not there."""

  def __init__(self, capacity, tokens):
    self.capacity = capacity
    self.nodes = [dict(
        parent=0, depth=0, tokens=[0] * tokens, num=0, prior=0.0, log_prob=0.0,
        value=0.0, weakest=math.inf, score=0.0, state=-1, status=KEPT,
        visits=0, total=0.0)]

  def slots(self, parents):
    found, free = [], len(self.nodes)
    for parent in parents:
      if parent < 0 or free >= self.capacity:
        found.append(-1)
      else:
        found.append(free)
        free += 1
    return found

  def add(self, parents, slots, tokens, num, prior, value):
    for r, slot in enumerate(slots):
      if slot < 0:
        continue
      assert slot == len(self.nodes)
      parent = self.nodes[parents[r]]
      self.nodes.append(dict(
          parent=parents[r], depth=parent["depth"] + 1, tokens=tokens[r],
          num=num[r], prior=prior[r], log_prob=parent["log_prob"] + prior[r],
          value=value[r], weakest=min(parent["weakest"], value[r]), score=0.0,
          state=-1, status=FREE, visits=0, total=0.0))

  def settle(self, slots, states, scores, merge):
    """Groups by state: of one state only the best newcomer may stay."""
    new = [(slot, state, score) for slot, state, score in zip(
        slots, states, scores) if slot >= 0]
    was_open = [i for i, n in enumerate(self.nodes) if n["status"] == OPEN]
    for slot, state, score in new:
      self.nodes[slot] |= dict(
          state=state, score=score, status=OPEN if state >= 0 else UNREADABLE)
    if not merge:
      return
    for state in {state for _, state, _ in new if state >= 0}:
      mine = [i for i, n in enumerate(self.nodes)
              if n["state"] == state and n["status"] in ALIVE]
      newest = [slot for slot, s, _ in new if s == state]
      best = min(mine, key=lambda i: (-self.nodes[i]["score"], i))
      top = max(self.nodes[i]["score"] for i in newest)
      for i in mine:
        node = self.nodes[i]
        if i in newest and i != best:
          node["status"] = MERGED
        if i in was_open and node["score"] < top:
          node["status"] = MERGED

  def best(self, among, keys, count):
    marked = [i for i in range(self.capacity) if among[i]]
    marked.sort(key=lambda i: (*(-key[i] for key in keys), i))
    return (marked + [-1] * count)[:count]

  def mark(self, nodes, status):
    for i in nodes:
      if i >= 0:
        self.nodes[i]["status"] = status

  def descend(self, c):
    now = 0
    while True:
      children = [i for i, n in enumerate(self.nodes)
                  if i and n["parent"] == now and n["status"] in ALIVE]
      if not children:
        return now
      most = max(self.nodes[i]["prior"] for i in children)
      mass = sum(math.exp(self.nodes[i]["prior"] - most) for i in children)

      def worth(i, now=now, most=most, mass=mass):
        n = self.nodes[i]
        q = (n["total"] + sigmoid(n["score"])) / (n["visits"] + 1)
        prior = math.exp(n["prior"] - most) / mass
        return q + c * prior * math.sqrt(
            self.nodes[now]["visits"]) / (1 + n["visits"])

      now = max(children, key=lambda i: (worth(i), -i))

  def backup(self, node, value):
    while node >= 0:
      self.nodes[node]["visits"] += 1
      self.nodes[node]["total"] += value
      node = self.nodes[node]["parent"] if node else -1
