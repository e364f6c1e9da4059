"""The command `lm bench`: what this machine can do, and our share of it."""

from collections.abc import Callable, Iterator
import json
import time
from typing import Any

from lm.types import UserError

_TEXT = ("Measures this machine: its best matrix product, how fast it reads"
         " memory, and how much of either a model gets out of it when it"
         " trains, reads and writes. About a minute; other work lowers it.")
_ROWS, _LENGTH, _PROMPT, _NEW = 4, 256, 512, 64


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("bench", help=_TEXT, description=_TEXT)
  parser.set_defaults(call=_bench, takes_overrides=False)
  parser.add_argument("--size", default="smollm2-135m", help=(
      "of the model, random weights: a name of lm.model.SIZES, by default"
      " smollm2-135m"))
  parser.add_argument("--json", metavar="FILE",
                      help="also write the numbers there")


def _bench(args) -> None:
  from lm import paths
  from lm.launch import runtime
  runtime.restart_with(runtime.ALLOCATOR)
  runtime.quiet_without_accelerator()
  runtime.compilation_cache()
  import rich.console
  import rich.table
  found = []
  console = rich.console.Console()
  with console.status("") as status:
    for row in measure(args.size, status.update):
      found.append(row)
  table = rich.table.Table(title=_machine(args.size), title_justify="left")
  for head, justify in (("", "left"), ("speed", "right"), ("work", "right"),
                        ("share", "right")):
    table.add_column(head, justify=justify, no_wrap=True)
  for row in found:
    table.add_row(*_cells(row))
  console.print(table)
  if args.json:
    try:
      paths.path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    except OSError as e:
      raise UserError(f"--json={args.json} cannot be written: {e}") from e


def _machine(size: str) -> str:
  import jax
  from lm.train import peak
  device = jax.devices()[0]
  cores = f", {peak.cores()} cores" if device.platform == "cpu" else ""
  return f"{device.device_kind}{cores}, jax {jax.__version__}, {size}"


def measure(size: str, say: Callable[[str], Any] = lambda text: None
            ) -> Iterator[dict[str, Any]]:
  """The rows of the table, on the first device.

  Args:
    size: of the model.
    say: told what comes next.

  Yields:
    {"name", "flops" or "bytes" per second}; of a model also "tokens" per second
    and "share", of the best product or of the memory's speed.
  """
  import jax

  from lm import model
  from lm import sharding
  from lm.train import peak
  config = model.size(size)
  length, prompt = (min(n, config.max_length // 2) for n in (_LENGTH, _PROMPT))
  peaks = {}
  for dtype in ("float32", "bfloat16"):
    say(f"matrix product of {dtype}")
    peaks[dtype] = peak.measure(dtypes=(dtype,))
    yield {"name": f"matrix product, {dtype}", "flops": peaks[dtype]}
  say("memory")
  reads = peak.bandwidth()
  yield {"name": "reading memory", "bytes": reads}
  best = max(peaks.values())

  def product(name, tokens, flops):
    return {"name": name, "tokens": tokens, "flops": tokens * flops,
            "share": tokens * flops / best}

  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    say(f"training {size}")
    yield product(f"training, {_ROWS} x {length} tokens",
                  _training(config, length),
                  config.flops_per_token(length / 2, training=True))
    say(f"{size} reads and writes")
    read, write, weights = _decoding(config, prompt)
    yield product(f"reading a prompt of {prompt} tokens", read,
                  config.flops_per_token(prompt / 2))
    yield {"name": "writing, one row", "tokens": write,
           "bytes": write * weights, "share": write * weights / reads}


def _fastest(call: Callable[[], Any], runs: int = 3) -> float:
  """Seconds of the fastest run, after one that compiles."""
  call()
  times = []
  for _ in range(runs):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return min(times)


def _training(config, length: int) -> float:
  """Tokens a second of whole steps with AdamW."""
  import jax
  import numpy as np

  from lm import model
  from lm import objectives
  from lm import train
  from lm.launch import stage
  from lm.types import Batch
  net = model.LanguageModel(config)
  tx = stage.optimizer(dict(name="adamw", learning_rate=1e-4,
                            schedule="constant"), steps=1)
  step = train.make_step(
      objectives.next_token(stage.apply_of(net)), tx, seed=0)
  tokens = np.random.default_rng(0).integers(
      0, config.vocab_size, (_ROWS, length), dtype=np.int32)
  batch = train.shard_batch(Batch(
      tokens, tokens, np.ones(tokens.shape, np.float32), np.ones_like(tokens),
      np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)))
  state = train.init_state(net, tx, jax.random.key(0))

  def once():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  return tokens.size / _fastest(once)


def _decoding(config, prompt: int) -> tuple[float, float, float]:
  """Tokens a second of a prompt, and of one row; bytes that a token reads."""
  import jax

  from lm import decode
  from lm import model
  from lm.decode import prepared
  params = jax.block_until_ready(prepared.prepare(
      config, model.LanguageModel(config).init(jax.random.key(0))))
  net = prepared.model(config)

  def generate(given: int, new: int):
    jax.block_until_ready(decode.generate(
        net, params, [list(range(given))], max_tokens=new, eos_id=-1,
        rules=decode.GREEDY, key=jax.random.key(1)))

  new = min(_NEW, config.max_length // 4)
  start = _fastest(lambda: generate(16, 1))
  read = prompt / _fastest(lambda: generate(prompt, 1))
  write = new / (_fastest(lambda: generate(16, 1 + new)) - start)
  weights = sum(x.nbytes for name, part in params.items() if name != "embed"
                for x in jax.tree.leaves(part))
  return read, write, float(weights)


def _cells(row) -> tuple[str, str, str, str]:
  work = (f"{row['flops'] / 1e9:,.0f} GFLOP/s" if "flops" in row
          else f"{row['bytes'] / 1e9:,.1f} GB/s")
  if "tokens" not in row:
    return row["name"], "", work, ""
  return (row["name"], f"{row['tokens']:,.0f} tokens/s", work,
          f"{row['share']:.0%}")
