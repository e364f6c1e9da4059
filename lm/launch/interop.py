"""Models of others into a working folder, and checkpoints out of one.

An imported model is a checkpoint of step 0 like any other: stages go on from
it (`--config.init=WORKDIR`), and `lm sample` speaks with it.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from lm import paths
from lm import sharding
from lm import train
from lm.interop import huggingface
from lm.interop import layouts
from lm.launch import catalogue
from lm.launch import stage
from lm.model import ModelConfig
from lm.train import files
from lm.train import loading
from lm.types import Params, TrainState, UserError

Progress = huggingface.Progress
# Writes a folder: (folder, loaded, dtype=..., ...) -> lines of warning.
Write = Callable[..., list[str]]


@dataclasses.dataclass(frozen=True)
class Imported:
  """What came in.

  Attributes:
    config: of the model.
    path: of the checkpoint.
    notes: lines that warn of what is missing.
  """

  config: ModelConfig
  path: pathlib.Path
  notes: list[str]


def import_model(
    source: str | os.PathLike, workdir: str | os.PathLike, *,
    dtype: str = "float32", max_length: int | None = None,
    progress: Progress | None = None,
) -> Imported:
  """Reads a model of others and writes it as a checkpoint of step 0.

  Args:
    source: a Hugging Face folder, a .gguf file, or the name of a fetched model.
    workdir: the working folder; without checkpoints.
    dtype: what the parameters are stored as; they are loaded as float32.
    max_length: a shorter longest sequence than the model's own.
    progress: called after each tensor, with how many are done and all.

  Raises:
    UserError: the model is not whole or not ours, the folder holds checkpoints
      already, or the disk is full; nothing half-written is left.
  """
  root = paths.absolute(workdir) / loading.FOLDER
  if files.steps(root):
    raise UserError(f"{root} holds checkpoints already: name another --out, or"
                    " delete that folder")
  with _mesh():
    config, params, vocab, about = _read(
        source, dtype=dtype, max_length=max_length, progress=progress)
    description = {
        "stage": "import", "model": config.to_dict(), "config": {},
        "imported": {**about, "dtype": dtype}}
    with tempfile.TemporaryDirectory() as folder:
      file = None
      if vocab is not None:
        file = pathlib.Path(folder) / stage.VOCAB
        vocab.save(file)
        description["vocab"] = {"hash": vocab.hash, "size": vocab.size}
      checkpointer = train.Checkpointer(
          workdir, description=description, vocab_file=file)
      state = TrainState(jnp.zeros((), jnp.int32), params, ())
      checkpointer.save(0, state, wait=True)
  notes = [] if vocab is not None else [
      "there is no tokenizer: the checkpoint has no vocabulary, and stages"
      " cannot go on from it"]
  return Imported(config, files.step_folder(root, 0), notes)


def _read(source: str | os.PathLike, *, dtype: str, max_length: int | None,
          progress: Progress | None
          ) -> tuple[ModelConfig, Params, Any, dict[str, Any]]:
  """Config, parameters, vocabulary and origin of a model."""
  if paths.is_remote(source):
    raise UserError(f"{source}: models are read from the local disk: copy it"
                    " with `gcloud storage cp -r`")
  path = pathlib.Path(catalogue.located(source)).absolute()
  if not os.path.exists(path):
    raise UserError(f"{source}: no such folder or file: fetch the model first,"
                    " for instance by `hf download NAME --local-dir FOLDER`")
  if path.is_dir():
    config, params, vocab = huggingface.load(
        path, dtype=dtype, max_length=max_length, progress=progress)
    return config, params, vocab, {"format": "Hugging Face",
                                   "source": str(path)}
  if path.suffix != ".gguf":
    raise UserError(f"{source} is neither a folder nor a .gguf file: name the"
                    " folder of the model")
  from lm.interop import gguf
  opened = gguf.open_gguf(path)
  config, vocab = huggingface.shortened(opened.config, max_length), opened.vocab
  huggingface.check_vocab(vocab, config, where=str(path))
  total, done = len(layouts.expected(config)), 0

  def tick(name: str) -> None:
    nonlocal done
    done += 1
    if progress is not None:
      progress(done, total)

  params = opened.params(dtype=dtype, tick=tick)
  return config, params, vocab, {**opened.source, "source": str(path)}


def export_checkpoint(
    checkpoint: str | os.PathLike, folder: str | os.PathLike, write: Write, *,
    which: str = "last", **options: Any,
) -> list[str]:
  """Writes the model of a checkpoint of any stage in a format of others.

  Args:
    checkpoint: a working folder, or one checkpoint.
    folder: to write; must not be there, or be empty.
    write: the format.
    which: the last or the best checkpoint.
    **options: of the format, as `dtype`.

  Returns:
    Lines that warn of what was left out.

  Raises:
    UserError: there is no checkpoint, or the format cannot say the model.
  """
  with _mesh():
    return write(folder, train.load(checkpoint, which=which), **options)


def stored_dtype(loaded: train.Loaded) -> str:
  """What a checkpoint's parameters are stored as."""
  kinds = {kind for _, kind in loaded.description["arrays"]["params"].values()}
  return "bfloat16" if kinds == {"bfloat16"} else "float32"


def _mesh() -> contextlib.AbstractContextManager:
  """All devices, each with its part, unless a mesh is set already."""
  if len(jax.devices()) == 1 or not jax.sharding.get_mesh().empty:
    return contextlib.nullcontext()
  return jax.set_mesh(sharding.make_mesh())
