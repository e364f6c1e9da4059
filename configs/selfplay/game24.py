"""Game of 24 from zero demonstrations, by expert iteration.

    python -m experiments.selfplay.run --config=configs/selfplay/game24.py
        --workdir=runs/selfplay/game24/0

Seeds 0 and 1: 94 and 92 % of the paper's games by tree of thoughts, 13 and 15 %
greedily (0 before); 90 minutes on one core. experiments/selfplay/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.task = "game24"
  c.dials = dict(largest=99)  # Of blind plays: what models can add up.
  c.model = dict(d_model=128, num_layers=4, num_heads=2, num_kv_heads=2,
                 head_dim=64, d_mlp=352, max_length=256, tied=True,
                 qk_norm=True)
  c.digits = False  # True: embeddings of numbers begin as sums of digits'.
  c.rounds = 8
  c.formats = dict(count=60_000, steps=300)  # Blind plays.
  # How training problems are played, and who judges where pruning does.
  c.play = dict(kind="whole_tree", k=(16, 4, 1), evaluate="value")
  c.labels = "any"  # Of lines: 'outcome', 'mean' or 'any'.
  c.targets = "solutions"  # What the policy imitates: or 'visits' of MCTS.
  c.start = "last"  # Each round trains on; 'formats': from the beginning.
  c.rationalize = False  # Hints for what was not solved.
  c.pool = 1200  # Training problems there are.
  c.per_round = 1200  # Problems played in a round.
  c.most = 64  # Solutions of a problem to learn from.
  c.recent = 2  # Rounds whose failures are learnt from.
  c.failures = 2  # For each solution.
  c.practice = 0.3  # Of what is learnt, blind plays: keeps lines faultless.
  c.epochs = 2.0  # Steps for so many tokens as a round's lessons hold.
  c.temperature = 1.0
  c.min_p = 0.02
  c.line_tokens = 16
  c.answer_tokens = 64
  c.batch = 50  # Problems at a time.
  c.training = dict(
      steps=400, batch=64, length=128, microbatches=1, compiler_options="",
      optimizer=dict(
          name="muon", learning_rate=3e-3, schedule="cosine", warmup=10,
          end=0.1, weight_decay=0.05, clip=1.0, dtype="bfloat16"),
      log_every=20, evaluate=dict(every=0),
      checkpoint=dict(every=100, keep_last=1, keep_best=0))
  c.evaluate = dict(split="validation", problems=22, b=5, k=(24, 4, 2))
  return c
