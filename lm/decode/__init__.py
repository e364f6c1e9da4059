"""Decoding: sampling rules, stop strings, and the engine."""

from lm.decode.engine import (
    DecodeState, ThinkingBudget, fork, generate, pad_prompts, prefill, run,
    score, step, texts,
)
from lm.decode.sampling import GREEDY, rules, sample
from lm.decode.stops import Stops

__all__ = [
    "GREEDY", "DecodeState", "Stops", "ThinkingBudget", "fork", "generate",
    "pad_prompts", "prefill", "rules", "run", "sample", "score", "step",
    "texts",
]
