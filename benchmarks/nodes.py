"""Nodes a second: a batched tree against one node at a time, in the same run.

Game of 24's model (3.4M parameters, random weights) grows trees for 100
problems with b=5, k=24,4,2 and thoughts of 12 tokens. The peer is the same
model as transformers' Qwen3, which writes one thought after the other with
`generate` and its cache, in float32 or bfloat16, whichever is faster; it is
given the prefixes of the same depths. Nothing is judged by the peer.
"""

import dataclasses
import functools
import time

import jax
import numpy as np
import torch
import transformers

import common
from lm import model
from lm import search
from lm.data import problems
from lm.launch import runtime

VOCAB = problems.vocabulary()
SHAPE = model.size("micro", vocab_size=VOCAB.size, scalar_head=True)
PROBLEMS, NODES, THOUGHT, PROMPT = 100, 20, 12, 12


@dataclasses.dataclass(frozen=True)
class Anything:
  """A problem whose thoughts are all readable and all different."""
  name: int
  num_thoughts = 3

  def prompt(self) -> str:
    return f"Make 24 from {self.name % 13} {self.name // 13} 8 9"

  def read(self, line: str) -> str:
    return line

  def read_answer(self, text: str) -> str:
    return text


def ours() -> float:
  """Nodes a second of one search over all problems, answers left out."""
  result = search.solve(_STRATEGY, writer(), _PROBLEMS, jax.random.key(0))
  nodes = sum(len(r.nodes) for r in result)
  return nodes / sum(r.cost.seconds for r in result)


_STRATEGY = search.tree_of_thoughts(5, (24, 4, 2))
_PROBLEMS = [Anything(i) for i in range(PROBLEMS)]


@functools.cache
def writer() -> search.Writer:
  lm = model.LanguageModel(SHAPE)
  return search.Writer(lm, lm.init(jax.random.key(0)), VOCAB,
                       line_tokens=THOUGHT, answer_tokens=1)


def theirs(dtype: torch.dtype):
  """The same number for transformers."""
  c = SHAPE
  qwen = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
      vocab_size=c.padded_vocab, hidden_size=c.d_model,
      intermediate_size=c.d_mlp, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
      head_dim=c.head_dim, max_position_embeddings=c.max_length,
      tie_word_embeddings=c.tied)).to(dtype).eval()
  rng = np.random.default_rng(0)

  def nodes() -> float:
    start = time.perf_counter()
    with torch.inference_mode():
      for i in range(NODES):  # Of the depths as they come in the tree.
        prefix = PROMPT + THOUGHT * (0 if i < 9 else 1 if i < 16 else 2)
        tokens = torch.tensor(rng.integers(0, c.vocab_size, (1, prefix)))
        qwen.generate(tokens, attention_mask=torch.ones_like(tokens),
                      max_new_tokens=THOUGHT, min_new_tokens=THOUGHT,
                      do_sample=True, pad_token_id=0)
    return NODES / (time.perf_counter() - start)

  return nodes


def main() -> None:
  runtime.restart_with(runtime.ALLOCATOR)
  runtime.quiet_without_accelerator()
  transformers.utils.logging.set_verbosity_error()
  peers = {name: theirs(getattr(torch, name))
           for name in ("float32", "bfloat16")}
  best = max(peers, key=lambda p: (peers[p](), peers[p]())[1])
  common.alternate(
      f"nodes, transformers {best}", ours, peers[best], runs=5,
      unit="nodes/s")


if __name__ == "__main__":
  main()
