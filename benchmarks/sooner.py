"""Time to the same held-out bits per byte: us against AdamW on PyTorch.

    python benchmarks/sooner.py [--steps 400] [--seeds 0 1 2]

Both read the same batches of the built-in corpus. The peer is transformers'
Llama of the same shape under bfloat16 autocast or in float32, whichever is
faster here, with AdamW, warm-up and a cosine to a tenth: what it has reached
after --steps is the goal. Ours comes twice: with the same recipe, and with our
own (Muon, QK-norm, a schedule of --share as many steps). Counted is the time of
training steps, compiling included, until an evaluation is as good as the goal;
evaluations themselves are not counted on either side.
"""

import argparse
from collections.abc import Iterator
import functools
import math
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
import torch

from lm import model
from lm import objectives
from lm import sharding
from lm import train
from lm.data import mixture
from lm.data import vocab as vocab_lib
from lm.launch import stage
import training

ROWS, LENGTH, VOCAB = 32, 256, 2048
SHAPE = dict(d_model=256, num_layers=4, num_heads=4, num_kv_heads=4,
             head_dim=64, d_mlp=704, vocab_size=VOCAB)
SOURCES = {"text": dict(kind="text", rate=1.0, path="builtin", holdout=0.01)}
ADAMW = dict(name="adamw", learning_rate=4e-3, schedule="cosine", warmup=50,
             end=0.1, b2=0.95, weight_decay=0.1, clip=1.0)
MUON = dict(name="muon", learning_rate=5e-3, schedule="cosine", warmup=20,
            end=0.05, weight_decay=0.05, clip=1.0, dtype="bfloat16")
Curve = list[tuple[float, float]]  # (seconds of training, bits per byte)


class Data:
  """Batches by seed, the held-out ones, and the bytes of each token."""

  def __init__(self, folder: pathlib.Path):
    vocab = vocab_lib.train(mixture.texts(SOURCES), VOCAB,
                            path=folder / "vocab.model")
    self._folders = {split: mixture.write(
        SOURCES, vocab, folder / "data", form="tokens", split=split,
        length=LENGTH) for split in ("train", "validation")}
    self.bytes_V = train.token_bytes(vocab)
    self.held_out = mixture.once(
        self._sources("validation", 0).values(), batches=6)

  def _sources(self, split: str, seed: int):
    return mixture.sources(self._folders[split], form="tokens", length=LENGTH,
                           batch=ROWS, seed=seed)

  def train(self, seed: int) -> Iterator:
    source = mixture.mixed(SOURCES, self._sources("train", seed))
    while True:
      yield source()


def ours(data: Data, seed: int, steps: int, optimizer, every: int, **shape
         ) -> Curve:
  net = model.LanguageModel(model.ModelConfig(
      **SHAPE, max_length=LENGTH, tied=True, **shape))
  program = stage.Program(net, objectives.next_token(stage.apply_of(net)))
  config = dict(optimizer=optimizer, steps=steps, seed=seed, microbatches=1,
                compiler_options="")
  step, tx = program.step(config), program.optimizer(config)
  evaluate = train.bits_per_byte(
      stage.apply_of(net), data.held_out, data.bytes_V)
  state = train.init_state(net, tx, jax.random.key(seed))

  def once(batch):
    nonlocal state
    state, metrics = step(state, train.shard_batch(batch))
    jax.block_until_ready(metrics)

  return _curve(data.train(seed), steps, every, once,
                lambda: evaluate(state.params)["bits_per_byte"])


def theirs(data: Data, seed: int, steps: int, every: int) -> Curve:
  torch.manual_seed(seed)
  training.SHAPES["sooner"] = SHAPE, ROWS, LENGTH
  speeds = {b: training.pytorch("sooner", bfloat16=b, compiled=False)
            for b in (False, True)}
  bfloat16 = max(speeds, key=lambda b: (speeds[b](), speeds[b]())[1])
  llama = training.llama("sooner")
  groups = [[p for p in llama.parameters() if (p.ndim > 1) == wide]
            for wide in (True, False)]
  optimizer = torch.optim.AdamW(
      [dict(params=groups[0], weight_decay=ADAMW["weight_decay"]),
       dict(params=groups[1], weight_decay=0.0)],
      ADAMW["learning_rate"], (0.9, ADAMW["b2"]), fused=True)
  end, warmup = ADAMW["end"], ADAMW["warmup"]
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(
      (i + 1) / warmup, end + (1 - end) * 0.5 * (1 + math.cos(
          math.pi * max(0, i - warmup) / (steps - warmup)))))

  def log_probs(batch):
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
      logits = llama(input_ids=torch.from_numpy(
          np.array(batch.tokens_BT)).long()).logits
    targets = torch.from_numpy(np.array(batch.targets_BT)).long()
    return -torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(),
        reduction="none").view(targets.shape)

  def once(batch):
    weights = torch.from_numpy(np.array(batch.weights_BT))
    loss = -(log_probs(batch) * weights).sum() / weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(llama.parameters(), ADAMW["clip"])
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()

  @torch.no_grad()
  def evaluate() -> float:
    nats = size = 0.0
    for batch in data.held_out:
      mask = np.asarray(batch.weights_BT) > 0
      nats -= float((log_probs(batch).numpy() * mask).sum())
      size += float((data.bytes_V[np.asarray(batch.targets_BT)] * mask).sum())
    return nats / math.log(2) / size

  return _curve(data.train(seed), steps, every, once, evaluate)


def _curve(batches, steps: int, every: int, once, evaluate) -> Curve:
  seconds, curve = 0.0, []
  for i in range(1, steps + 1):
    batch = next(batches)
    start = time.perf_counter()
    once(batch)
    seconds += time.perf_counter() - start
    if i % every == 0 or i == steps:
      curve.append((seconds, evaluate()))
  return curve


def _reached(curve: Curve, goal: float) -> float | None:
  return next((s for s, bits in curve if bits <= goal), None)


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--share", type=float, default=0.5)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  args = parser.parse_args()
  training.prepare()
  with (tempfile.TemporaryDirectory() as name,
        jax.set_mesh(sharding.make_mesh(dict(data=1)))):
    data = Data(pathlib.Path(name))
    fewer = int(args.share * args.steps)
    for seed in args.seeds:
      peer = theirs(data, seed, args.steps, args.steps // 20)
      seconds, goal = peer[-1]
      sys.stdout.write(f"seed {seed}: PyTorch {goal:.4f} bits per byte after"
                       f" {args.steps} steps, {seconds:.0f} s\n")
      runs = {
          "the same recipe": functools.partial(
              ours, data, seed, args.steps, ADAMW, args.steps // 20),
          f"our own, {fewer} steps": functools.partial(
              ours, data, seed, fewer, MUON, max(1, fewer // 40),
              qk_norm=True)}
      for name, run in runs.items():
        curve = run()
        at = _reached(curve, goal)
        sys.stdout.write(
            f"seed {seed}: {name}: {curve[-1][1]:.4f} after {curve[-1][0]:.0f}"
            f" s; " + (f"as good after {at:.0f} s, {seconds / at:.2f} times"
                       " sooner" if at else "never as good") + "\n")


if __name__ == "__main__":
  main()
