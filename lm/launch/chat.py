"""`lm chat --model NAME|PATH`: talks to a model, on a terminal or in a pipe."""

import argparse
from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import io
import os
import pathlib
import signal
import sys
import threading
from typing import Any

from lm import paths
from lm.launch import catalogue
from lm.types import UserError

_TEXT = ("Talks to a model: a fetched one, a GGUF file, a Hugging Face folder"
         " or a run's --workdir. On a terminal /help shows the commands; in a"
         " pipe each line is a turn, and only answers are printed.")
_HELP = """\
/system TEXT  another system message (without TEXT: none)
/reset        forget the conversation, not the system message
/think N      think for at most N tokens before the answer; 0: do not
/help         this
/quit         end (or Ctrl-D); Ctrl-C stops an answer"""
_COMMANDS = ("/system", "/reset", "/think", "/help", "/quit")
# What could steer a terminal, but for newlines and tabs.
_CONTROLS = {i: "\ufffd" for i in (*range(32), *range(127, 160))
             if i not in (9, 10)}


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("chat", help=_TEXT, description=_TEXT)
  parser.set_defaults(call=run, takes_overrides=False)
  parser.add_argument("--model", required=True, metavar="NAME|PATH", help=(
      "see lm fetch --list; or a .gguf file, a folder with config.json and"
      " safetensors, or a run's --workdir"))
  parser.add_argument("--prompt", help="one turn, answered; then the end")
  parser.add_argument("--system", help="a system message")
  parser.add_argument("--max_tokens", type=int, default=512,
                      help="of one answer, by default 512")
  sampling_flags(parser)
  parser.add_argument("--think", type=int, default=0, metavar="TOKENS", help=(
      "write --marker after so many tokens at the latest; 0: no thinking"))
  parser.add_argument("--marker", default="Answer:",
                      help="where thinking ends, by default Answer:")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"),
                      default="auto", help="to compute in; auto: as the machine"
                      " is quicker")


def sampling_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `sampling_rules` reads."""
  parser.add_argument("--temperature", type=float, default=0.8,
                      help="0 is greedy; by default 0.8")
  parser.add_argument("--top_k", type=int, help="of the K likeliest tokens")
  parser.add_argument("--top_p", type=float, help=(
      "of the likeliest tokens that together have this probability"))
  parser.add_argument("--min_p", type=float, help=(
      "of tokens with at least this share of the likeliest one's"))
  parser.add_argument("--repetition_penalty", type=float, help=(
      "above 1: tokens that were there already are less likely"))


def sampling_rules(args: argparse.Namespace):
  """The rules of sampling that the flags ask for."""
  from lm import decode
  return decode.rules(
      temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
      min_p=args.min_p, repetition_penalty=args.repetition_penalty)


def run(args: argparse.Namespace) -> int:
  """The command.

  Raises:
    UserError: no such model, a bad option, or a text that does not fit.
  """
  one = args.prompt is not None
  terminal = sys.stdout.isatty() and (one or sys.stdin.isatty())
  with _waiting(args.model):
    session = open_session(args)
  screen = _Screen(terminal)
  if one:
    _answer(session, args.prompt, screen)
    return 0
  if not terminal and isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(errors="replace")
  lines = _typed() if terminal else map(_stripped, sys.stdin)
  if terminal:
    screen.note(f"{args.model}; /help shows the commands")
  for line in lines:
    if not line:
      continue
    try:
      command = line.split(None, 1)[0]
      if command in _COMMANDS or (terminal and line[0] == "/"):
        if _obey(session, line, screen):
          break
      else:
        _answer(session, line, screen)
    except UserError as e:
      if not terminal:
        raise
      screen.note(f"error: {e}")
    except KeyboardInterrupt:  # A second one, before the first was heard.
      if not terminal:
        raise
      screen.end()
  return 0


def _stripped(line: str) -> str:
  return line.strip()


def _typed() -> Iterator[str]:
  """Lines of a terminal, until Ctrl-D."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401  Gives `input` history and line editing.
  while True:
    try:
      yield input("> ").strip()
    except EOFError:
      print()
      return
    except KeyboardInterrupt:
      print()


def _obey(session: Any, line: str, screen: "_Screen") -> bool:
  """Does what a line with a slash says; true means the end."""
  command, _, rest = line.partition(" ")
  rest = rest.strip()
  if command == "/quit":
    return True
  if command == "/help":
    screen.note(_HELP)
  elif command == "/reset":
    session.reset()
    screen.note("the conversation is forgotten")
  elif command == "/system":
    session.set_system(rest)
    screen.note("from now on: " + (rest or "no system message"))
  elif command == "/think":
    if not rest.isdecimal():
      raise UserError("/think takes a number of tokens: /think 200, or /think 0"
                      " for no thinking")
    session.think(int(rest))
    screen.note(f"thinking: {rest} tokens" if int(rest) else "no thinking")
  else:
    raise UserError(f"no command {command}: /help shows them")
  return False


def _answer(session: Any, text: str, screen: "_Screen") -> None:
  with _interruptible(screen.terminal) as stopped, contextlib.closing(
      session.say(text, stopped=stopped)) as pieces:
    for piece in pieces:
      screen.show(piece)
  screen.end()


@contextlib.contextmanager
def _interruptible(wanted: bool) -> Iterator[Callable[[], bool]]:
  """Ctrl-C asks for an end here; a second one forces it."""
  pressed = threading.Event()
  if not wanted:
    yield pressed.is_set
    return

  def press(number, frame):
    if pressed.is_set():
      signal.default_int_handler(number, frame)
    pressed.set()

  before = signal.signal(signal.SIGINT, press)
  try:
    yield pressed.is_set
  finally:
    signal.signal(signal.SIGINT, before)


class _Screen:
  """Where answers and notes go."""

  def __init__(self, terminal: bool):
    self.terminal = terminal
    self._column = 0
    self._console: Any = None
    if terminal:
      import rich.console
      self._console = rich.console.Console(highlight=False, markup=False)

  def show(self, piece: Any) -> None:
    """One piece of an answer, at once."""
    if piece.kind == "note":
      self.end()
      self.note(piece.text)
      return
    text = piece.text
    if sys.stdout.isatty() or self.terminal:
      text = text.translate(_CONTROLS)
    if self.terminal:
      self._console.print(text, end="", soft_wrap=True,
                          style="dim" if piece.kind == "thought" else None)
    else:
      sys.stdout.write(text)
      sys.stdout.flush()
    self._column = int(not text.endswith("\n"))

  def end(self) -> None:
    """The end of the line, if something is on it."""
    if self._column:
      print(flush=True)
    self._column = 0

  def note(self, text: str) -> None:
    """A line that is no answer."""
    if self.terminal:
      self._console.print(f"({text})" if "\n" not in text else text,
                          style="dim")
    else:
      print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _waiting(name: str):
  """A sign of life on a terminal: the first start compiles."""
  if not sys.stderr.isatty():
    yield
    return
  import rich.console
  text = f"opening {name} (the first time also compiles)"
  with rich.console.Console(stderr=True).status(text):
    yield


# --------------------------------------------------------------------- models


def open_session(args: argparse.Namespace) -> Any:
  """The conversation that the flags ask for; programs are made meanwhile.

  Raises:
    UserError: no such model, or a bad option.
  """
  from lm.launch import runtime
  runtime.quiet_without_accelerator()
  runtime.compilation_cache()
  import jax
  # The small programs that place weights, too: they are many.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  from lm.launch import chat_session
  settings = chat_session.Settings(
      rules=sampling_rules(args), max_tokens=args.max_tokens, seed=args.seed,
      think=args.think, marker=args.marker)
  config, tokenizer, read = source(args.model, args.dtype)
  with futures.ThreadPoolExecutor(1) as pool:
    params = pool.submit(read)
    vocab = tokenizer()
    if vocab is None:
      raise UserError(
          f"{args.model} has no tokenizer: a conversation needs one")
    session = chat_session.Conversation(
        config, vocab, settings=settings, system=args.system)
    session.open(params.result)
  return session


def source(name: str, dtype: str = "auto"):
  """What is known of a model before its weights are read.

  Args:
    name: of a fetched model, a .gguf file, a Hugging Face folder or a run's
      working folder.
    dtype: to compute in.

  Returns:
    The config, and functions that read the vocabulary and the parameters.

  Raises:
    UserError: there is no such model, or it was not fetched.
  """
  where: Any = catalogue.located(name)
  if not paths.is_remote(where):
    where = pathlib.Path(where)
    if not os.path.exists(where):  # Unlike `Path.exists`, of any text.
      raise UserError(
          f"no model at {name}: give a file or folder, or one of"
          f" {', '.join(catalogue.MODELS)} (lm fetch --list)")
    if where.is_file():
      return _of_gguf(where, dtype)
    # A run's folder has a config.json of its own.
    if ((where / "config.json").is_file()
        and not (where / "checkpoints").is_dir()):
      return _of_hugging_face(where, dtype)
  return _of_run(where, dtype)


def _of_gguf(file: pathlib.Path, dtype: str):
  from lm.interop import gguf
  opened = gguf.open_gguf(file)
  return (opened.config.replace(dtype=dtype), lambda: opened.vocab,
          opened.params)


def _of_hugging_face(folder: pathlib.Path, dtype: str):
  from lm.interop import huggingface
  from lm.model.dot import compute_dtype
  config = huggingface.read_config(folder).replace(dtype=dtype)
  kind = str(compute_dtype(config.dtype))
  return (config, lambda: huggingface.load_vocab(folder, config),
          lambda: huggingface.load(folder, dtype=kind)[1])


def _of_run(folder: str | os.PathLike, dtype: str):
  from lm import train
  loaded = train.load(folder)
  config = loaded.config
  if dtype != "auto":
    config = config.replace(dtype=dtype)
  return config, lambda: loaded.vocab, lambda: loaded.params
