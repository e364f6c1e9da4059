"""The `lm` command: thin sub-commands over the rooms.

Each sub-command imports only what it needs, so `lm --help` is quick. Training
is `python -m experiments.STAGE.run --config=...`.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from lm.launch import bench_command
from lm.launch import chat
from lm.launch import doctor
from lm.launch import draw_command
from lm.launch import fetch
from lm.launch import interop_command
from lm.launch.tpu import command as tpu
from lm.types import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a sub-command; returns 0, 1 (measured, not as expected) or 2.

  Or, as shells do, 130 after Ctrl-C and 141 if nobody reads on.
  """
  args = parse(argv)
  try:
    return args.call(args) or 0
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:  # Who read our output has enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The arguments of a sub-command, with what to call; exits 2 on bad ones."""
  parser = argparse.ArgumentParser(prog="lm", description=(
      "Small tools around the experiments; train with python -m"
      " experiments.STAGE.run --config=..."))
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  _add_vocab(commands)
  _add_corpus(commands)
  _add_sample(commands)
  fetch.add(commands)
  chat.add(commands)
  interop_command.add(commands)
  draw_command.add(commands)
  _add_ablate(commands)
  _add_plan(commands)
  doctor.add(commands)
  bench_command.add(commands)
  tpu.add(commands)
  args, args.rest = parser.parse_known_args(argv)
  for item in args.rest:
    if not (args.takes_overrides and item.startswith("--config.")):
      parser.error(f"unexpected argument {item!r}")
  return args


def _add(commands, name: str, call, text: str, *, takes_overrides=False):
  parser = commands.add_parser(name, help=text, description=text)
  parser.set_defaults(call=call, takes_overrides=takes_overrides)
  return parser


def _add_vocab(commands) -> None:
  parser = commands.add_parser("vocab", help="Vocabularies.")
  sub = parser.add_subparsers(required=True, metavar="COMMAND")
  train = _add(sub, "train", _vocab_train,
               "Trains a SentencePiece BPE vocabulary on a corpus.")
  train.add_argument("corpus", help="a folder or file of text, or builtin")
  train.add_argument("--size", type=int, default=8192, help="pieces, by"
                     " default 8192")
  train.add_argument("--out", required=True, help="the .model file to write")
  train.add_argument("--symbol", action="append", default=[], metavar="TEXT",
                     help="shall be one piece; may be repeated")
  train.add_argument("--game24", action="store_true",
                     help="numbers are one piece, as the puzzles like it")
  show = _add(sub, "show", _vocab_show, "Shows how a vocabulary cuts a text.")
  show.add_argument("file", help="a .model file, or bytes")
  show.add_argument("text")


def _vocab_train(args) -> None:
  from lm.data import corpus
  from lm.data import vocab
  symbols = list(args.symbol)
  if args.game24:
    from lm.data.problems import game24
    symbols += game24.SYMBOLS
  made = vocab.train(corpus.load(args.corpus).texts(), args.size,
                     path=args.out, symbols=symbols)
  print(f"{args.out}: {made.size} pieces")


def _vocab_show(args) -> None:
  from lm.data import vocab
  loaded = vocab.load(args.file)
  ids = loaded.encode(args.text)
  print(" ".join(f"{loaded.piece(i)!r}:{i}" for i in ids))


def _add_corpus(commands) -> None:
  parser = commands.add_parser("corpus", help="Corpora.")
  sub = parser.add_subparsers(required=True, metavar="COMMAND")
  show = _add(sub, "show", _corpus_show,
              "Reads a corpus to its end: how much there is, and its names.")
  show.add_argument("corpus", help="a folder or file of text, or builtin")
  show.add_argument("--holdout", type=float, default=0.01,
                    help="share that is held out, by default 0.01")

  debian = _add(sub, "debian", _corpus_debian, (
      "Makes a corpus of about 155 MB from Debian packages, one JSONL a source;"
      " what is there is kept."))
  debian.add_argument("out", help="the folder, a corpus afterwards")
  debian.add_argument("--name", action="append",
                      help="a source; may be repeated; by default all")
  debian.add_argument("--unpacked", help=(
      "a folder with PACKAGE/ for each package, instead of apt-get"))


def _corpus_debian(args) -> None:
  from lm.data import debian
  names = tuple(args.name or debian.EXTRACTORS)
  debian.build(args.out, names=names, unpacked=args.unpacked,
               report=lambda made: print(
                   f"{made.name}: {made.documents} documents,"
                   f" {made.text_bytes / 1e6:.1f} MB", flush=True))


def _corpus_show(args) -> None:
  from lm.data import corpus
  loaded = corpus.load(args.corpus)
  counts = {"train": [0, 0], "validation": [0, 0]}
  for name, text in loaded.read():
    count = counts[corpus.split_of(name, args.holdout)]
    count[0] += 1
    count[1] += len(text.encode())
  print(", ".join(f"{k}: {v}" for k, v in loaded.source.items()))
  for split, (documents, size) in counts.items():
    print(f"{split}: {documents} documents, {size / 1e6:.1f} MB")


def _add_sample(commands) -> None:
  parser = _add(commands, "sample", _sample,
                "Continues prompts with the model of a checkpoint.")
  parser.add_argument("--ckpt", required=True,
                      help="a run's --workdir, or one checkpoint")
  parser.add_argument("--prompt", action="append", required=True,
                      help="text to continue; may be repeated")
  parser.add_argument("--chat", action="store_true", help=(
      "the prompt is a user's message, answered by the assistant"))
  parser.add_argument("--system", help="a system message, with --chat")
  parser.add_argument("--samples", type=int, default=1, help="of each prompt")
  parser.add_argument("--max_tokens", type=int, default=100)
  chat.sampling_flags(parser)
  parser.add_argument("--stop", action="append", default=[],
                      help="text that ends the sample; may be repeated")
  parser.add_argument("--think", type=int, metavar="TOKENS", help=(
      "write --marker after so many tokens at the latest"))
  parser.add_argument("--marker", default="Answer:",
                      help="where thinking ends, by default Answer:")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--which", choices=("last", "best"), default="last")


def _sample(args) -> None:
  import jax
  from lm import decode
  from lm import model
  from lm import train
  from lm.data import chat as chat_data
  from lm.launch import runtime

  runtime.quiet_without_accelerator()
  runtime.compilation_cache()
  loaded = train.load(args.ckpt, which=args.which)
  vocab, config = loaded.vocab, loaded.config
  prompts = []
  for text in args.prompt:
    if args.chat:
      messages = [{"role": "user", "content": text}]
      if args.system:
        messages.insert(0, {"role": "system", "content": args.system})
      prompts.append(chat_data.encode_prompt(vocab, messages))
    else:
      prompts.append([*vocab.prefix, *vocab.encode(text)] or [vocab.eos_id])
  rows = [p for p in prompts for _ in range(args.samples)]
  stops = budget = None
  if args.stop:
    stops = decode.Stops.build(vocab, args.stop, size=config.padded_vocab)
  if args.think is not None:
    budget = decode.ThinkingBudget.build(
        vocab, args.marker, tokens=args.think, size=config.padded_vocab)
  state = decode.generate(
      model.LanguageModel(config), loaded.params, rows, eos_id=vocab.eos_ids,
      max_tokens=args.max_tokens, key=jax.random.key(args.seed), stops=stops,
      budget=budget, rules=chat.sampling_rules(args))
  for i, text in enumerate(decode.texts(vocab, state)):
    prompt = args.prompt[i // args.samples]
    print(text if args.chat else prompt + text)
    if i + 1 < len(rows):
      print("---")


def _add_ablate(commands) -> None:
  parser = _add(
      commands, "ablate", _ablate,
      "Runs every config of a folder with several seeds, resuming what is not"
      " done, and writes the table. --config.KEY=VALUE is passed on to every"
      " run (and then the expected ranges are not checked).",
      takes_overrides=True)
  parser.add_argument("folder", help="for instance configs/ablations/qk_norm")
  parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ..")
  parser.add_argument("--workdir", help="by default runs/ablations/NAME")
  parser.add_argument("--record", action="store_true", help=(
      "also write RESULTS.md and results.json beside the configs"))


def _ablate(args) -> int:
  from lm.launch import ablate
  import rich.console
  import rich.table

  if args.seeds < 1:
    raise UserError("--seeds must be at least 1")
  # Configs import each other from the checkout that we stand in, which the
  # installed command, unlike python -m, does not have on its path.
  sys.path.insert(0, str(pathlib.Path.cwd()))
  folder = pathlib.Path(args.folder)
  cells = ablate.load_cells(folder)
  root = pathlib.Path(args.workdir or f"runs/ablations/{folder.name}")
  seeds, results = range(args.seeds), {}
  console = rich.console.Console()
  for seed in seeds:  # Seeds outside: a first answer comes early.
    for cell in cells:
      name = f"{cell.name}, seed {seed}"
      with console.status(name) as status:
        result = ablate.run_cell(
            cell, seed, root / cell.name / f"seed{seed}", overrides=args.rest,
            on_progress=lambda line, s=status, n=name: s.update(
                f"{n} {line}"[:console.width - 4].replace("[", "(")))
      results.setdefault(cell.name, []).append(result)
      console.print(f"{name}: {result['seconds']:.0f} s", highlight=False)
  table = ablate.summarise(cells, results)
  head, *body = ablate.rows(table)
  shown = rich.table.Table(*head)
  for row in body:
    shown.add_row(*row)
  console.print(shown)
  ablate.save(root, "table", folder.name, seeds, table)
  if args.record:
    ablate.save(folder, "results", folder.name, seeds, table)
    (folder / "results.md").rename(folder / "RESULTS.md")
  console.print(f"{root / 'table.md'}, {root / 'table.json'}")
  if args.rest:
    return 0
  for line in ablate.surprises(table):
    console.print(f"unexpected: {line}", style="red")
  return 1 if ablate.surprises(table) else 0


def _add_plan(commands) -> None:
  parser = _add(
      commands, "plan", _plan,
      "Compiles a config's training step for a TPU slice that need not be"
      " there, by the real compiler, and says whether it fits, how fast it"
      " would be (modelled), what holds it up and what it would cost. Exits"
      " with 1 if it does not fit. --config.KEY=VALUE changes the config.",
      takes_overrides=True)
  parser.add_argument("--config", help="a config file of a training stage")
  parser.add_argument("--topology", help=(
      "a slice: v5p:8x8x8, or by Google Cloud's name, v5p-1024; by default the"
      " one that the config is meant for"))
  parser.add_argument("--slices", type=int, help="how many of it; by default"
                      " 1, or as the config is meant")
  parser.add_argument("--json", help="a file to write the plan to")
  parser.add_argument("--decode", metavar="ROWSxLENGTH", help=(
      "plan decoding instead: prefill, and a step with a cache of LENGTH"))
  parser.add_argument("--search", action="store_true", help=(
      "try meshes, rematerialisation, microbatches and compiler options, and"
      " rank what fits"))
  parser.add_argument("--limit", type=int, default=24,
                      help="how many to compile with --search, by default 24")
  parser.add_argument("--hlo", metavar="FILE", help=(
      "read anybody's compiled text (compiled.as_text()) instead of a config"))
  parser.add_argument("--record", nargs="+", metavar="CONFIG", help=(
      "plan these configs for what they are meant for; write docs/plans and"
      " their docstrings"))


def _one(count: int | None) -> int:
  return 1 if count is None else count


def _plan(args) -> int:
  from lm.launch.plan import command
  from lm.launch.plan import record
  sys.path.insert(0, str(pathlib.Path.cwd()))  # As for `ablate`.
  if args.record:
    return record.refresh(args.record, lambda line: print(line, flush=True))
  if args.hlo:
    if not args.topology:
      raise UserError("--hlo needs --topology, what it was compiled for")
    command.of_text(args.hlo, args.topology, slices=_one(args.slices),
                    json=args.json)
    return 0
  if not args.config:
    raise UserError("--config=FILE is needed, for instance"
                    " --config=configs/pretrain/llama2_7b.py, or --hlo=FILE")
  topology, slices = args.topology, _one(args.slices)
  if not topology:
    topology, slices = record.target(args.config)
    slices = slices if args.slices is None else args.slices
  if args.search:
    from lm.launch.plan import search
    return search.run(args.config, topology, slices=slices,
                      limit=args.limit, overrides=args.rest)
  return command.status(command.child(
      args.config, topology, slices=slices, json=args.json,
      decode=args.decode, overrides=args.rest))


if __name__ == "__main__":
  sys.exit(main())
