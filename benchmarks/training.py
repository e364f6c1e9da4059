"""Training steps: us against transformers on PyTorch, and against plain JAX.

    python benchmarks/training.py [--sizes 1M 12M 124M] [--runs 3]

Llamas of the same shape with AdamW, on random tokens: tokens a second of whole
steps, update included. PyTorch is measured in float32 and under bfloat16
autocast, each as it is and compiled (where there is a C++ compiler), and the
best of these counts. Plain JAX is float32 (plain.py). The share of the peak is
of the matrix products that a step needs, against the best product measured on
this machine just before.
"""

import argparse
from collections.abc import Callable
import functools
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import common
from lm import model
from lm import objectives
from lm import sharding
from lm import train
from lm.launch import runtime
from lm.launch import stage
from lm.train import peak as peak_lib
from lm.types import Batch
import plain

# Widths as in GPT-2: (model, rows, length) by name.
SHAPES = {
    "1M": (dict(d_model=128, num_layers=4, num_heads=2, num_kv_heads=2,
                head_dim=64, d_mlp=352, vocab_size=1024), 32, 128),
    "12M": (dict(d_model=384, num_layers=6, num_heads=6, num_kv_heads=6,
                 head_dim=64, d_mlp=1024, vocab_size=4096), 16, 256),
    "124M": (dict(d_model=768, num_layers=12, num_heads=12, num_kv_heads=12,
                  head_dim=64, d_mlp=2048, vocab_size=50304), 4, 512),
}
OPTIMIZER = dict(name="adamw", learning_rate=1e-3, schedule="constant", b2=0.95,
                 weight_decay=0.1, clip=1.0)
Measure = Callable[[], float]


def config_of(size: str) -> model.ModelConfig:
  fields, _, length = SHAPES[size]
  return model.ModelConfig(**fields, max_length=length, tied=True)


def tokens_of(size: str) -> np.ndarray:
  fields, rows, length = SHAPES[size]
  return np.random.default_rng(0).integers(
      0, fields["vocab_size"], (rows, length), dtype=np.int32)


def timed(step: Callable[[], object], tokens: int) -> Measure:
  """Tokens a second of one step that waits for its result."""
  def measure() -> float:
    start = time.perf_counter()
    step()
    return tokens / (time.perf_counter() - start)
  return measure


def ours(size: str) -> Measure:
  net = model.LanguageModel(config_of(size))
  tokens = tokens_of(size)
  program = stage.Program(net, objectives.next_token(stage.apply_of(net)))
  config = dict(optimizer=OPTIMIZER, steps=1000, seed=0, microbatches=1,
                compiler_options="")
  step, tx = program.step(config), program.optimizer(config)
  weights = np.ones(tokens.shape, np.float32)
  weights[:, -1] = 0
  batch = train.shard_batch(Batch(
      tokens, np.roll(tokens, -1, 1), weights, np.ones_like(tokens),
      np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32),
                      tokens.shape)))
  state = train.init_state(net, tx, jax.random.key(0))

  def once():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  return timed(once, tokens.size)


def plain_jax(size: str) -> Measure:
  tx, step = plain.make_step()
  params = plain.init(config_of(size), jax.random.key(0))
  state, tokens = tx.init(params), jnp.asarray(tokens_of(size))

  def once():
    nonlocal params, state
    params, state, loss = step(params, state, tokens)
    jax.block_until_ready(loss)

  return timed(once, tokens.size)


def llama(size: str) -> transformers.LlamaForCausalLM:
  c = config_of(size)
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=c.vocab_size, hidden_size=c.d_model,
      intermediate_size=c.d_mlp, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
      max_position_embeddings=c.max_length, tie_word_embeddings=True,
      use_cache=False))


def pytorch(size: str, *, bfloat16: bool, compiled: bool) -> Measure:
  net = llama(size)
  optimizer = torch.optim.AdamW(net.parameters(), 1e-3, (0.9, 0.95),
                                weight_decay=0.1, fused=True)
  call = torch.compile(net) if compiled else net
  tokens = torch.from_numpy(tokens_of(size)).long()

  def once():
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
      loss = call(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()

  return timed(once, tokens.numel())


def best_pytorch(size: str) -> tuple[str, Measure]:
  """The fastest way, by the second of two steps, and how fast each is."""
  ways = {}
  for bfloat16 in (False, True):
    for compiled in (False, True)[:1 + (shutil.which("g++") is not None)]:
      name = (f"{'bfloat16' if bfloat16 else 'float32'},"
              f" {'compiled' if compiled else 'eager'}")
      ways[name] = pytorch(size, bfloat16=bfloat16, compiled=compiled)
  speeds = {name: (way(), way(), way())[2] for name, way in ways.items()}
  sys.stdout.write(f"{size}, PyTorch: " + "; ".join(
      f"{name} {speed:,.0f} tokens/s" for name, speed in speeds.items())
      + "\n")
  best = max(speeds, key=speeds.__getitem__)
  return best, ways[best]


def prepare() -> None:
  """Of the process: our allocator's setting, and silence."""
  runtime.restart_with(runtime.ALLOCATOR)
  runtime.quiet_without_accelerator()
  transformers.utils.logging.set_verbosity_error()


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=[*SHAPES])
  parser.add_argument("--runs", type=int, default=5, help="pairs that count")
  args = parser.parse_args()
  prepare()
  with jax.set_mesh(sharding.make_mesh(dict(data=1))):
    for size in args.sizes:
      mine = ours(size)
      measure = functools.partial(common.alternate, runs=args.runs,
                                  unit="tokens/s")
      name, peer = best_pytorch(size)
      measure(f"{size}, PyTorch {name}", mine, peer)
      if size != "1M":
        measure(f"{size}, plain JAX float32", mine, plain_jax(size))
      needs = config_of(size).flops_per_token(
          SHAPES[size][2] // 2, training=True)
      peak = peak_lib.measure()
      speed = max(mine() for _ in range(3))
      sys.stdout.write(
          f"{size}: {speed * needs / 1e9:,.0f} GFLOP/s,"
          f" {speed * needs / peak:.0%} of the {peak / 1e9:,.0f} GFLOP/s of the"
          " best product\n")


if __name__ == "__main__":
  main()
