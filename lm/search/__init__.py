"""System 2: strategies that trade thinking for accuracy."""

from lm.search.evaluate import EVALUATORS
from lm.search.expand import Writer
from lm.search.strategies import (
    Beam, Samples, Strategy, best_of_n, greedy, self_consistency,
    tree_of_thoughts,
)
from lm.search.tree import Cost, Node, Problem, Result, path_to

__all__ = [
    "EVALUATORS", "Beam", "Cost", "Node", "Problem", "Result", "Samples",
    "Strategy", "Writer", "best_of_n", "greedy", "path_to", "self_consistency",
    "tree_of_thoughts",
]
