"""Reading and writing tokens: us against transformers, in the same run.

A model of SmolLM2-135M's shape with random weights: writing by one row and by
32, and reading a prompt of 1,000 tokens. The peer is measured in float32 and in
bfloat16, and the better one counts. Also printed: the memory roof, the tokens a
second at which the weights could be read at all.
"""

import functools
import sys
import time

import jax
import torch
import transformers

import common
from lm import decode
from lm import model
from lm.decode import engine
from lm.decode import prepared
from lm.launch import runtime
from lm.train import peak

SHAPE = model.size("smollm2-135m", max_length=2048)
NEW = 64  # Tokens written by each row; 16 are read before.
PROMPT = 1000


def ours(dtype: str):
  """(write(rows), read(length)): tokens a second, once compiled."""
  config = SHAPE.replace(dtype=dtype)
  params = jax.block_until_ready(prepared.prepare(
      config, model.LanguageModel(config).init(jax.random.key(0))))
  lm = prepared.model(config)
  make = functools.partial(
      decode.generate, lm, params, max_tokens=NEW, eos_id=-1,
      rules=decode.GREEDY, key=jax.random.key(1))
  prefill = jax.jit(functools.partial(
      engine.prefill, lm, max_tokens=8, key=jax.random.key(1)))

  def write(rows: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(make([list(range(16))] * rows))
    return rows * NEW / (time.perf_counter() - start)

  def read(length: int) -> float:
    tokens, lengths = engine.pad_prompts([list(range(length))])
    start = time.perf_counter()
    jax.block_until_ready(prefill(params, tokens, lengths).logits_BV)
    return length / (time.perf_counter() - start)

  return write, read


def theirs(dtype: torch.dtype):
  """The same two of transformers' Llama."""
  c = SHAPE
  llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=c.vocab_size, hidden_size=c.d_model,
      intermediate_size=c.d_mlp, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
      max_position_embeddings=c.max_length, rope_theta=c.rope_theta,
      tie_word_embeddings=c.tied)).to(dtype).eval()

  def write(rows: int) -> float:
    tokens = torch.arange(16)[None].repeat(rows, 1)
    start = time.perf_counter()
    with torch.inference_mode():
      llama.generate(tokens, attention_mask=torch.ones_like(tokens),
                     max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
                     pad_token_id=0)
    return rows * NEW / (time.perf_counter() - start)

  def read(length: int) -> float:
    tokens = torch.arange(length)[None]
    start = time.perf_counter()
    with torch.inference_mode():
      llama(tokens, logits_to_keep=1, use_cache=True)
    return length / (time.perf_counter() - start)

  return write, read


def main() -> None:
  runtime.restart_with(runtime.ALLOCATOR)
  runtime.quiet_without_accelerator()
  transformers.utils.logging.set_verbosity_error()
  reads = peak.bandwidth() / SHAPE.num_params  # By a parallel sum.
  sys.stdout.write(
      f"memory roof: {reads / 4:.0f} tokens/s in float32, {reads / 2:.0f} in"
      " bfloat16\n")
  peers = {name: theirs(getattr(torch, name))
           for name in ("float32", "bfloat16")}
  for dtype in sys.argv[1:] or ["bfloat16"]:
    write, read = ours(dtype)
    for index, call, argument, name in (
        (0, write, 1, "write, 1 row"), (0, write, 32, "write, 32 rows"),
        (1, read, PROMPT, f"read {PROMPT:,} tokens")):
      best = max(peers, key=lambda p, i=index, a=argument: peers[p][i](a))
      common.alternate(
          f"{name}, ours {dtype}, transformers {best}",
          functools.partial(call, argument),
          functools.partial(peers[best][index], argument), runs=3,
          unit="tokens/s")


if __name__ == "__main__":
  main()
