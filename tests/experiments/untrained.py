"""A checkpoint that has learnt nothing, for what only needs one."""

import pathlib

import jax
from lm import model
from lm import train
import optax


def save(folder: pathlib.Path, vocab, *, scalar_head: bool = True
         ) -> pathlib.Path:
  """Writes a model of one layer, its value head random; returns `folder`."""
  folder.mkdir(parents=True, exist_ok=True)
  vocab.save(folder / "vocab.json")
  config = model.size("test", vocab_size=vocab.size, max_length=512,
                      num_layers=1, scalar_head=scalar_head)
  state = train.init_state(model.LanguageModel(config), optax.sgd(0.1),
                           jax.random.key(0))
  if scalar_head:
    head = state.params["value"]["value"]
    state.params["value"]["value"] = jax.random.normal(
        jax.random.key(1), head.shape, head.dtype)
  train.Checkpointer(
      folder, vocab_file=folder / "vocab.json",
      description={"model": config.to_dict(), "vocab": {"hash": vocab.hash}},
  ).save(1, state, wait=True)
  return folder
