"""Pre-training: a transformer learns from text, and from games written out.

    python -m experiments.pretrain.run --config=configs/pretrain/tiny.py
        --workdir=runs/pretrain/tiny

The vocabulary is trained first, on the same sources, unless `vocab.path` names
one. Data is prepared once under `data.folder` (by default WORKDIR/data). The
measure is bits per byte of held-out text. The same command resumes.
"""

import pathlib

from lm import model
from lm import objectives
from lm import paths
from lm import train
from lm.data import mixture
from lm.data import vocab as vocab_lib
from lm.data.problems import game24
from lm.launch import main
from lm.launch import stage
from lm.types import UserError


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  config = config.to_dict()
  stage.check(config, own=("model", "vocab", "z_loss"),
              evaluate=("every", "batches"))
  config = stage.by_the_dial(config)
  specs, length = config["data"]["sources"], config["length"]
  folder = paths.path(config["data"]["folder"] or workdir / "data")
  vocab = stage.first_alone(lambda: stage.call(
      vocabulary, workdir, specs, where="vocab", **config["vocab"]))

  def sources(specs, split):
    folders = stage.first_alone(lambda: mixture.write(
        specs, vocab, folder, form="tokens", split=split, length=length))
    return mixture.sources(
        folders, form="tokens", length=length, batch=config["batch"],
        seed=config["seed"], **stage.hosts())

  train_source = mixture.mixed(specs, sources(specs, "train"))
  # Held-out text alone: games would flatter the measure.
  held_out = mixture.once(sources(text_of(specs), "validation").values(),
                          batches=config["evaluate"]["batches"])
  made = program(config, vocab.size)
  stage.Stage(
      name="pretrain", workdir=workdir, config=config, program=made,
      vocab=vocab, source=train_source,
      evaluate=train.bits_per_byte(stage.apply_of(made.model), held_out,
                                   train.token_bytes(vocab)),
      best="bits_per_byte",
  ).fit()


def program(config, vocab_size: int | None = None) -> stage.Program:
  """The model and its loss; the vocabulary's size as the config says it."""
  config = stage.by_the_dial(config)
  if vocab_size is None:
    vocab = config["vocab"]
    vocab_size = (vocab_lib.load(vocab["path"]).size if vocab["path"]
                  else vocab["size"])
  net = model.LanguageModel(stage.model_config(
      config["model"], vocab_size, length=config["length"]))
  return stage.Program(net, objectives.next_token(
      stage.apply_of(net), z_loss=config["z_loss"]))


def text_of(specs):
  """The sources that are text; all of them if none is."""
  text = {name: spec for name, spec in specs.items()
          if spec.get("kind") == "text" and spec.get("rate", 1.0) != 0}
  return text or specs


def vocabulary(workdir: pathlib.Path, specs, *, path: str, size: int,
               game24_symbols: bool) -> vocab_lib.Vocab:
  """The one at `path`, or the run's own, trained on its sources if missing."""
  own = workdir / stage.VOCAB
  if path:
    vocab = vocab_lib.load(path)
    if paths.is_file(own) and vocab_lib.load(own).hash != vocab.hash:
      raise UserError(f"{own}, which this run began with, is not the vocabulary"
                      f" {path}: use that, or another --workdir")
    return vocab
  if paths.is_file(own):
    return vocab_lib.load(own)
  return vocab_lib.train(
      mixture.texts(specs), size, path=own,
      symbols=game24.SYMBOLS if game24_symbols else ())


if __name__ == "__main__":
  main.main(run, program)
