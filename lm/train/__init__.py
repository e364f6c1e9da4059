"""Training: one step, one loop, hooks around it, and checkpoints."""

from lm.train import checkpoint
from lm.train.checkpoint import Checkpointer, Loaded, find, load
from lm.train.evaluate import bits_per_byte, token_bytes
from lm.train.goodput import Goodput
from lm.train.hooks import (
    Checkpoint, Diverged, Evaluate, JsonLines, StopIfDiverged, StopOnSignal,
    TensorBoard, read_metrics)
from lm.train.loop import Hook, Run, Source, Stopped, fit
from lm.train.progress import Progress
from lm.train.resume import begin
from lm.train.step import (
    Step, abstract_batch, abstract_state, init_state, make_step, shard_batch,
    state_of)
from lm.train.trace import TraceOnDemand

__all__ = (
    "Checkpoint", "Checkpointer", "Diverged", "Evaluate", "Goodput", "Hook",
    "JsonLines", "Loaded", "Progress", "Run", "Source", "Step",
    "StopIfDiverged", "StopOnSignal", "Stopped", "TensorBoard", "TraceOnDemand",
    "abstract_batch", "abstract_state", "begin", "bits_per_byte", "checkpoint",
    "find", "fit", "init_state", "load", "make_step", "read_metrics",
    "shard_batch", "state_of", "token_bytes",
)
