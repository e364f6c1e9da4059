"""What two models write when given the same prompts: a stage of the demo.

    python -m experiments.demo.samples --base=runs/demo/pretrain
        --instructed=runs/demo/instruct --out=runs/demo/samples/samples.json

The base model continues the text; the instructed model gets it as a user's
message and answers. The questions are held out: neither model trained on them.
"""

import argparse
from collections.abc import Sequence
import itertools
import json
import os
import pathlib
import sys

from lm.types import UserError

TEMPERATURE, TOP_P, MAX_TOKENS = 0.7, 0.95, 56


def prompts() -> list[str]:
  """A game and questions that are in no training set, and a line of text."""
  from lm.data import dialogues
  from lm.data.problems import game24
  held_out = (row["messages"][0]["content"]
              for row in dialogues.documentation(split="validation"))
  # Questions about modules' objects with short names read best.
  questions = [q for q in itertools.islice(held_out, 200)
               if len(q) < 48 and "called" not in q]
  return [game24.prompt(game24.test_puzzles()[0]), *questions[:2],
          "The Python standard library"]


def write(folder: pathlib.Path, texts: Sequence[str], *, instructed: bool,
          seed: int) -> list[str]:
  """One sample for each text from the checkpoint in `folder`."""
  import jax
  from lm import decode
  from lm import model
  from lm import train
  from lm.data import chat

  loaded = train.load(folder)
  vocab = loaded.vocab
  if instructed:
    rows = [chat.encode_prompt(vocab, [{"role": "user", "content": t}])
            for t in texts]
  else:
    rows = [vocab.encode(t) for t in texts]
  room = loaded.config.max_length - max(map(len, rows))
  state = decode.generate(
      model.LanguageModel(loaded.config), loaded.params, rows,
      eos_id=vocab.eos_id, max_tokens=min(MAX_TOKENS, room),
      key=jax.random.key(seed),
      rules=decode.rules(temperature=TEMPERATURE, top_p=TOP_P))
  return decode.texts(vocab, state)


def main(argv: Sequence[str] | None = None) -> int:
  """Samples, and notes the devices; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.demo.samples",
      description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--base", required=True, help="a run's folder")
  parser.add_argument("--instructed", required=True, help="a run's folder")
  parser.add_argument("--out", required=True, help="the JSON file to write")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  try:
    import jax
    from lm import sharding
    from lm.launch import runtime
    runtime.quiet()
    runtime.quiet_without_accelerator()
    runtime.compilation_cache()
    texts = prompts()
    with jax.set_mesh(sharding.make_mesh({"data": 1})):
      base = write(pathlib.Path(args.base), texts, instructed=False,
                   seed=args.seed)
      instructed = write(pathlib.Path(args.instructed), texts,
                         instructed=True, seed=args.seed)
  except UserError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  found = {
      "temperature": TEMPERATURE, "top_p": TOP_P, "seed": args.seed,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "samples": [{"prompt": p, "base": b, "instructed": i}
                  for p, b, i in zip(texts, base, instructed, strict=True)]}
  out = pathlib.Path(args.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  partial = out.with_suffix(".tmp")
  partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
