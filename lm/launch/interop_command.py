"""The commands `lm import` and `lm export`: flags; `interop` does the work."""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import sys
from typing import Any

from lm.types import UserError

_IMPORT = ("Makes a checkpoint of somebody's model, to go on from: a Hugging"
           " Face folder (Llama, Mistral, Qwen2, Qwen3) or a GGUF file.")
_EXPORT = "Writes a checkpoint's model in a format that other programs open."


def add(commands) -> None:
  """Adds both sub-commands to argparse's `commands`."""
  parser = _add(commands, "import", _import, _IMPORT)
  parser.add_argument("source", metavar="SOURCE", help=(
      "a folder with config.json and safetensors, a .gguf file, or a model of"
      " lm fetch"))
  parser.add_argument("--out", required=True, metavar="WORKDIR", help=(
      "the working folder to make, for --config.init and --ckpt"))
  parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                      default="float32", help=(
      "what it is stored as, by default float32; training is in float32"))
  parser.add_argument("--max_length", type=int, metavar="TOKENS", help=(
      "a shorter longest sequence than the model's own"))

  parser = _add(commands, "export", _export, _EXPORT)
  parser.add_argument("ckpt", metavar="CKPT",
                      help="a run's --workdir, or one checkpoint")
  parser.add_argument("--out", required=True, metavar="FOLDER",
                      help="the folder to make")
  parser.add_argument("--format", choices=tuple(FORMATS),
                      default="huggingface", help="by default huggingface")
  parser.add_argument("--dtype", help=(
      "of the weights: float32 or bfloat16, by default as the checkpoint"
      " stores them; with two-file float32 (the default) or int8"))
  parser.add_argument("--shard_gb", type=float, help=(
      "largest file of weights, by default 5 (huggingface only)"))
  parser.add_argument("--which", choices=("last", "best"), default="last")


def _huggingface(folder, loaded, *, dtype=None, shard_gb=None, progress=None
                 ) -> list[str]:
  from lm.interop import huggingface
  from lm.launch import interop
  return huggingface.export(
      folder, loaded.config, loaded.params, loaded.vocab, progress=progress,
      dtype=dtype or interop.stored_dtype(loaded),
      shard_gb=5.0 if shard_gb is None else shard_gb)


def _two_file(folder, loaded, *, dtype=None, shard_gb=None, progress=None
              ) -> list[str]:
  from lm.interop import huggingface
  from lm.interop import two_file
  del progress  # It is done in a moment.
  if shard_gb is not None:
    raise UserError("--shard_gb: the two-file format has one file of weights")
  if loaded.vocab is None:
    raise UserError(f"{loaded.path} holds no vocabulary, without which the"
                    " two-file format is of no use")
  dtype = dtype or "float32"
  huggingface.write_folder(
      folder, lambda temp: two_file.export(
          temp, loaded.config, loaded.params, loaded.vocab, dtype=dtype),
      nbytes=loaded.config.num_params * (4 if dtype == "float32" else 1))
  return (["the scalar head (value, reward) is left out"]
          if loaded.config.scalar_head else [])


# What `--format` chooses from: writes the folder, returns lines of warning.
FORMATS: dict[str, Callable[..., list[str]]] = {
    "huggingface": _huggingface,
    "two-file": _two_file,
}


def _add(commands, name: str, call, text: str) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=text, description=text)
  parser.set_defaults(call=call, takes_overrides=False)
  return parser


def _import(args) -> None:
  interop = _quietly()
  with _bar("reading") as progress:
    made = interop.import_model(
        args.source, args.out, dtype=args.dtype, max_length=args.max_length,
        progress=progress)
  _warn(made.notes)
  c = made.config
  print(f"{made.path}: {c.num_params / 1e6:,.1f}M parameters in {c.num_layers}"
        f" layers, {c.vocab_size} ids, {c.max_length} tokens; go on with"
        f" --config.init={args.out}")


def _export(args) -> None:
  interop = _quietly()
  with _bar("writing") as progress:
    notes = interop.export_checkpoint(
        args.ckpt, args.out, FORMATS[args.format], dtype=args.dtype,
        which=args.which, shard_gb=args.shard_gb, progress=progress)
  _warn(notes)
  print(args.out)


def _quietly() -> Any:
  """The module that does the work, with JAX set up for it."""
  from lm.launch import interop
  from lm.launch import runtime
  runtime.quiet_without_accelerator()
  runtime.compilation_cache()
  return interop


def _warn(notes: list[str]) -> None:
  for note in notes:
    print(f"warning: {note}", file=sys.stderr)


@contextlib.contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
  """A progress bar over tensors, on the error stream and gone at the end."""
  import rich.console
  import rich.progress
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(
      rich.progress.TextColumn(text), rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(),
      console=console, transient=True,
      disable=not console.is_terminal) as bars:
    task = bars.add_task(text, total=None)
    yield lambda done, total: bars.update(task, completed=done, total=total)
