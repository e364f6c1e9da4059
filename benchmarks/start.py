"""From nothing to the first training step, compiled programs being cached.

    python benchmarks/start.py

Ours is the pre-training command as users type it, its data prepared, up to the
line of its first step. The peer is the least that a PyTorch user would write:
it imports torch and transformers, makes a Llama of the same shape, and does one
step on random tokens, with no data, no checkpoint and no log. Seconds.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import common

_PEER = """
import torch, transformers
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=2048, hidden_size=128, intermediate_size=384,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=256, tie_word_embeddings=True))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
tokens = torch.randint(0, 2048, (32, 256))
model(input_ids=tokens, labels=tokens).loss.backward()
optimizer.step()
"""


def ours(folder: pathlib.Path, name: str, *more: str) -> float:
  """Seconds until the line of the first step."""
  start = time.perf_counter()
  with subprocess.Popen(
      [sys.executable, "-m", "experiments.pretrain.run",
       "--config=configs/pretrain/tiny.py", f"--workdir={folder / name}",
       "--config.steps=1", "--config.log_every=1",
       f"--config.data.folder={folder / 'data'}", *more],
      cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL, text=True) as run:
    seconds = None
    for line in run.stdout:
      if seconds is None and " 1/1 " in line:
        seconds = time.perf_counter() - start
  if run.returncode or seconds is None:
    raise SystemExit(f"the run of {name} said nothing of its first step")
  return seconds


def theirs() -> float:
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", _PEER], check=True,
                 stderr=subprocess.DEVNULL)
  return time.perf_counter() - start


def main() -> None:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    ours(folder, "first")  # Prepares the data, fills the cache of programs.
    vocab = f"--config.vocab.path={folder / 'first' / 'vocab.model'}"
    runs = iter(range(99))
    common.alternate(
        "first training step", lambda: ours(folder, f"run{next(runs)}", vocab),
        theirs, runs=5, unit="s")


if __name__ == "__main__":
  main()
