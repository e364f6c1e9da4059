"""Decoding: sampling rules, stop strings, and the engine."""

from lm.decode.engine import (
    DecodeState, ThinkingBudget, feed, fork, generate, pad_prompts, prefill,
    resume, run, score, step, texts,
)
from lm.decode.sampling import GREEDY, rules, sample
from lm.decode.stops import Stops

__all__ = [
    "GREEDY", "DecodeState", "Stops", "ThinkingBudget", "feed", "fork",
    "generate",
    "pad_prompts", "prefill", "resume", "rules", "run", "sample", "score",
    "step", "texts",
]
