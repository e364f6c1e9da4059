"""System 2: strategies that trade thinking for accuracy."""

from lm.search.budget import Budget, Cost, Meter
from lm.search.evaluate import EVALUATORS, OF_VALUES, Critic, evaluator
from lm.search.expand import Evaluate, Expand, Thoughts
from lm.search.guided import Agenda, Mcts, best_first, depth_first, mcts
from lm.search.result import End, Node, Problem, Result, path_to
from lm.search.strategies import (
    Beam, Samples, Strategy, best_of_n, depths, greedy, self_consistency, solve,
    tree_of_thoughts, whole_tree,
)
from lm.search.texts import Revision, TokenBeam, revision, stream, token_beam
from lm.search.tree import Tree
from lm.search.writer import Writer, Written

__all__ = [
    "EVALUATORS", "OF_VALUES", "Agenda", "Beam", "Budget", "Cost", "Critic",
    "End", "Evaluate", "Expand", "Mcts", "Meter", "Node", "Problem",
    "Result", "Revision", "Samples", "Strategy", "Thoughts", "TokenBeam",
    "Tree", "Writer", "Written", "best_first", "best_of_n", "depth_first",
    "depths", "evaluator", "greedy", "mcts", "path_to", "revision",
    "self_consistency", "solve", "stream", "token_beam", "tree_of_thoughts",
    "whole_tree",
]
