"""Models in Hugging Face's folders: config.json, safetensors, a tokenizer."""

from collections.abc import Callable
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm import paths
from lm.interop import hf_config
from lm.interop import layouts
from lm.interop.safetensors_file import SafetensorsFile, write
from lm.model import ModelConfig
from lm.types import Params, UserError

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
Progress = Callable[[int, int], None]  # Tensors done, and how many there are.


# -------------------------------------------------------------------- inwards


def read_config(
    folder: str | os.PathLike, *, max_length: int | None = None
) -> ModelConfig:
  """The model of a folder, from its config.json.

  Args:
    folder: with config.json.
    max_length: a shorter longest sequence than the model's own.

  Raises:
    UserError: there is none, or our model cannot say what it says.
  """
  path = _local(folder) / CONFIG
  config = hf_config.read(_json(path), where=str(path))
  return shortened(config, max_length)


def shortened(config: ModelConfig, max_length: int | None) -> ModelConfig:
  """The model with a shorter longest sequence; None leaves it."""
  if max_length is None:
    return config
  if not 1 <= max_length <= config.max_length:
    raise UserError(f"--max_length={max_length}: the model was made for"
                    f" sequences of 1 to {config.max_length} tokens")
  return config.replace(max_length=max_length)


def load(
    folder: str | os.PathLike, *, dtype: str = "float32",
    max_length: int | None = None, progress: Progress | None = None,
) -> tuple[ModelConfig, Params, Any]:
  """Reads a model's folder; the parameters go tensor by tensor to the mesh.

  Args:
    folder: as `save_pretrained` writes it, with one file of weights or shards.
    dtype: of the parameters: float32 or bfloat16.
    max_length: a shorter longest sequence than the model's own.
    progress: called after each tensor.

  Returns:
    The model's config, its parameters laid out on the mesh that is set, and
    its vocabulary; None where the folder has no tokenizer.

  Raises:
    UserError: something is missing, damaged or not ours; it is named.
  """
  folder = _local(folder)
  config = read_config(folder, max_length=max_length)
  vocab = load_vocab(folder, config)
  weights = Weights(folder)
  done, total = 0, len(layouts.expected(config))

  def tick(name: str) -> None:
    nonlocal done
    done += 1
    if progress is not None:
      progress(done, total)

  params = layouts.assemble(config, weights.shapes, weights.read, dtype=dtype,
                            where=str(folder), tick=tick)
  return config, params, vocab


def load_vocab(folder: str | os.PathLike, config: ModelConfig) -> Any:
  """The vocabulary of a folder, or None.

  Raises:
    UserError: it cannot be read, or has more ids than the embedding has rows.
  """
  folder = _local(folder)
  if not any((folder / name).is_file() for name in _TOKENIZERS):
    return None
  from lm.data import bpe
  vocab = bpe.HuggingFaceVocab.from_folder(folder)
  check_vocab(vocab, config, where=str(folder))
  return vocab


def check_vocab(vocab: Any, config: ModelConfig, *, where: str) -> None:
  """Refuses a vocabulary with ids that the embedding has no row for."""
  if vocab is not None and vocab.size > config.vocab_size:
    raise UserError(f"{where}: its tokenizer has {vocab.size} ids, but the"
                    f" embedding only {config.vocab_size} rows (vocab_size of"
                    f" {CONFIG}): they are not of one model")


class Weights:
  """The tensors of a folder, from one file or from shards.

  Attributes:
    shapes: by name.
    files: by their names.
  """

  def __init__(self, folder: str | os.PathLike):
    folder = _local(folder)
    self.files: dict[str, SafetensorsFile] = {}
    self._owner: dict[str, SafetensorsFile] = {}
    index: dict[str, str] = {}
    if (folder / WEIGHTS).is_file():
      names = [WEIGHTS]
    elif (folder / INDEX).is_file():
      index = _weight_map(folder / INDEX)
      names = sorted(set(index.values()))
    else:
      raise _no_weights(folder)
    for name in names:
      file = self.files[name] = SafetensorsFile(folder / name)
      for tensor in file.shapes:
        if tensor in self._owner:
          raise UserError(f"{file.path} and {self._owner[tensor].path} both"
                          f" hold a tensor {tensor!r}: shards of two models are"
                          " mixed")
        self._owner[tensor] = file
    for tensor, name in index.items():
      if tensor not in self.files[name].shapes:
        raise UserError(f"{folder / name} has no tensor {tensor!r}, which"
                        f" {INDEX} says it has: fetch the whole model again")
    self.shapes = {t: f.shapes[t] for t, f in self._owner.items()}

  def read(self, name: str) -> np.ndarray:
    """A tensor as a view of its file."""
    return self._owner[name].read(name)


def _weight_map(path: pathlib.Path) -> dict[str, str]:
  index = _json(path).get("weight_map")
  if not isinstance(index, dict) or not index or not all(
      isinstance(name, str) for name in index.values()):
    raise UserError(f"{path} has no weight_map of tensors to files")
  for name in index.values():
    if pathlib.PurePath(name).name != name or not name.endswith(".safetensors"):
      raise UserError(f"{path}: {name!r} is not a safetensors file beside it")
  return index


def _no_weights(folder: pathlib.Path) -> UserError:
  others = sorted(p.name for pattern in ("*.bin", "*.pth", "*.safetensors",
                                         "*.msgpack", "*.h5", "*.gguf")
                  for p in folder.glob(pattern))
  seen = f" (there is {others[0]})" if others else ""
  return UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}{seen}: get the"
                   " model in safetensors")


def _local(folder: str | os.PathLike) -> pathlib.Path:
  if paths.is_remote(folder):
    raise UserError(f"{folder}: models are read from and written to the local"
                    " disk: copy it with `gcloud storage cp -r`")
  return pathlib.Path(folder)


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_bytes().decode())
  except FileNotFoundError as e:
    raise UserError(f"{path} is missing: name the folder of a Hugging Face"
                    " model") from e
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{path} cannot be read: {e}") from e
  if not isinstance(value, dict):
    raise UserError(f"{path} is not a JSON object")
  return value


# ------------------------------------------------------------------- outwards


def export(
    folder: str | os.PathLike, config: ModelConfig, params: Params, vocab: Any,
    *, dtype: str = "float32", shard_gb: float = 5.0,
    progress: Progress | None = None,
) -> list[str]:
  """Writes a model as a folder that transformers opens, whole or not at all.

  Args:
    folder: must not be there, or be empty.
    config: of the model.
    params: its parameters; fetched to the host tensor by tensor.
    vocab: its vocabulary, or None.
    dtype: of the weights: float32 or bfloat16.
    shard_gb: a file of weights has at most so many gigabytes (but one tensor).
    progress: called after each tensor.

  Returns:
    Lines that warn of what was left out.

  Raises:
    UserError: no class of Hugging Face's can say the model, the folder is not
      empty, or the disk is full.
  """
  if dtype not in layouts.DTYPES:
    raise UserError(f"--dtype={dtype}: choose one of"
                    f" {', '.join(layouts.DTYPES)}")
  if not shard_gb > 0:
    raise UserError(f"--shard_gb={shard_gb}: must be above 0")
  check_vocab(vocab, config, where="the checkpoint")
  about = hf_config.write(
      config, dtype=dtype, bos_id=vocab.bos_id if vocab else None,
      eos_ids=tuple(vocab.eos_ids) if vocab else ())
  notes = []
  if config.scalar_head:
    notes.append("the scalar head (value, reward) is left out: Hugging Face's"
                 " classes have no place for it")
  if vocab is None:
    notes.append("the checkpoint has no vocabulary: no tokenizer is written")

  def fill(temp: pathlib.Path) -> None:
    if vocab is not None:
      from lm.data import bpe
      bpe.to_huggingface(vocab, temp)
    _write_json(temp / CONFIG, about)
    _write_json(temp / GENERATION, {
        k: about[k] for k in ("bos_token_id", "eos_token_id")
        if about[k] is not None})
    _write_weights(temp, config, params, dtype=dtype, shard_gb=shard_gb,
                   progress=progress)

  write_folder(folder, fill, nbytes=sum(
      math.prod(shape) for shape in layouts.expected(config).values())
      * jnp.dtype(dtype).itemsize)
  return notes


def write_folder(folder: str | os.PathLike,
                 fill: Callable[[pathlib.Path], None], *, nbytes: int) -> None:
  """Makes a folder whole or not at all.

  Args:
    folder: must not be there, or be empty.
    fill: writes the files into the folder that it is given.
    nbytes: about how many; with less space nothing is begun.

  Raises:
    UserError: there are files in it, or the disk is full.
  """
  final = _local(folder).absolute()
  temp = final.with_name(f".{final.name}.{os.getpid()}.tmp")
  try:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
      raise UserError(f"{final} is there and not empty: name another --out")
    final.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(final.parent).free
    if free < nbytes:
      raise UserError(f"{final} would take {nbytes / 1e9:.2f} GB, but there are"
                      f" {free / 1e9:.2f} GB: free some space, or name another"
                      " --out")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    fill(temp)
    os.rename(temp, final)  # In the place of an empty folder, too.
  except OSError as e:
    raise UserError(f"could not write {final}: {e.strerror or e}; nothing is"
                    " left of it") from e
  finally:
    shutil.rmtree(temp, ignore_errors=True)


def _write_weights(folder: pathlib.Path, config: ModelConfig, params: Params,
                   *, dtype: str, shard_gb: float, progress: Progress | None):
  tensors = {t.name: t for t in layouts.tensors(config, params)}
  done = 0

  def fetch(name: str) -> np.ndarray:
    nonlocal done
    found = tensors[name].fetch()
    done += 1
    if progress is not None:
      progress(done, len(tensors))
    return found

  kind = jnp.dtype(dtype)
  sizes = {name: math.prod(t.shape) * kind.itemsize
           for name, t in tensors.items()}
  shards = _shards(sizes, shard_gb * 1e9)
  names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
           for i in range(len(shards))] if len(shards) > 1 else [WEIGHTS]
  for name, shard in zip(names, shards, strict=True):
    write(folder / name, [(t, tensors[t].shape) for t in shard], fetch,
          dtype=kind)
  if len(shards) > 1:
    _write_json(folder / INDEX, {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {t: name for name, shard in zip(
            names, shards, strict=True) for t in shard}})


def _shards(sizes: dict[str, int], limit: float) -> list[list[str]]:
  """Names in parts of at most `limit` bytes, or of one tensor."""
  parts: list[list[str]] = []
  held = math.inf
  for name, size in sizes.items():
    if held + size > limit:
      parts.append([])
      held = 0
    parts[-1].append(name)
    held += size
  return parts


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  paths.write_bytes(path, f"{json.dumps(value, indent=2)}\n".encode())
