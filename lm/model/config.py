"""What a transformer is: its shape, and all that follows from the shape."""

import dataclasses
import difflib
from typing import Any

from lm.types import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer (letters: `lm.types`).

  Attributes:
    vocab_size: V, token ids in use; tables are padded to `vocab_multiple`.
    d_model: D.
    num_layers: L.
    num_heads: N.
    num_kv_heads: K; must divide N (grouped-query attention, 2305.13245).
    head_dim: H.
    d_mlp: F, width of the SwiGLU (2002.05202).
    max_length: longest sequence, in tokens.
    rope_theta: base of the rotary frequencies (2104.09864).
    rope_scaling: None, or Llama 3.1's (factor, low_freq_factor,
      high_freq_factor, original_max_length) (2407.21783).
    window: None, or how many tokens back a query sees (2310.06825).
    qk_norm: RMS-normalise queries and keys (2302.05442).
    qkv_bias: add a learnt bias to queries, keys and values (2309.16609).
    tied: the LM head is the embedding table.
    logit_cap: None, or soft cap: cap * tanh(logits / cap) (2408.00118).
    norm_eps: of RMSNorm (1910.07467).
    scalar_head: also hold a scalar head (value, reward).
    vocab_multiple: the padded vocabulary is a multiple of this.
    attention: 'reference', 'splash' (the TPU's kernel; not for decoding) or
      'auto': by platform.
    remat: what the backward pass recomputes: see `remat.REMAT`.
    ring: None, or the groups in which gradients are summed over the fsdp axis:
      see `sharding.reduce_scatter`.
    unroll: layers per scan iteration; None: all on CPU, 1 elsewhere.
    dtype: matmul input dtype: 'auto', 'bfloat16' or 'float32'.
  """

  vocab_size: int
  d_model: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  d_mlp: int
  max_length: int = 2048
  rope_theta: float = 10_000.0
  rope_scaling: tuple[float, float, float, int] | None = None
  window: int | None = None
  qk_norm: bool = False
  qkv_bias: bool = False
  tied: bool = False
  logit_cap: float | None = None
  norm_eps: float = 1e-5
  scalar_head: bool = False
  vocab_multiple: int = 128
  attention: str = "auto"
  remat: str = "none"
  ring: int | None = None
  unroll: int | None = None
  dtype: str = "auto"

  def __post_init__(self):
    for field in ("vocab_size", "d_model", "num_layers", "num_heads",
                  "num_kv_heads", "head_dim", "d_mlp", "max_length"):
      if getattr(self, field) < 1:
        raise UserError(f"model.{field} must be at least 1")
    if self.num_heads % self.num_kv_heads:
      raise UserError(
          f"model.num_kv_heads={self.num_kv_heads} must divide"
          f" model.num_heads={self.num_heads}"
      )
    if self.head_dim % 2:
      raise UserError("model.head_dim must be even: RoPE rotates pairs")
    if self.dtype not in ("auto", "bfloat16", "float32"):
      raise UserError(
          f"model.dtype={self.dtype!r}: choose auto, bfloat16 or float32")
    if self.attention not in ("auto", "reference", "splash"):
      raise UserError(f"model.attention={self.attention!r}: choose auto,"
                      " reference or splash")
    if self.rope_scaling is not None:
      object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))

  def replace(self, **changes) -> "ModelConfig":
    return self.from_dict(self.to_dict() | changes)

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
    """Builds a config; an unknown key is a UserError naming the nearest."""
    known = [f.name for f in dataclasses.fields(cls)]
    for key in fields:
      if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = (f"; did you mean {near[0]!r}?" if near
                else f": use one of {', '.join(known)}")
        raise UserError(f"unknown key model.{key}{hint}")
    missing = [
        f.name for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.name not in fields
    ]
    if missing:
      raise UserError(f"model.{missing[0]} is missing")
    return cls(**fields)

  @property
  def padded_vocab(self) -> int:
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  @property
  def layer_params(self) -> int:
    """Parameters of one block."""
    d, h = self.d_model, self.head_dim
    attention = d * h * (2 * self.num_heads + 2 * self.num_kv_heads)
    norms = 2 * d + (2 * h if self.qk_norm else 0)
    biases = (h * (self.num_heads + 2 * self.num_kv_heads)
              if self.qkv_bias else 0)
    return attention + 3 * d * self.d_mlp + norms + biases

  @property
  def num_params(self) -> int:
    """All parameters, the vocabulary's padding included."""
    table = self.padded_vocab * self.d_model
    return (
        self.num_layers * self.layer_params + self.d_model
        + table * (1 if self.tied else 2)
        + (self.d_model + 1 if self.scalar_head else 0)
    )

  def flops_per_token(self, length: float | None = None, *,
                      training: bool = False) -> float:
    """FLOPs of a token that sees `length` keys (max_length when None).

    Multiply-adds count two; causal attention over a whole sequence averages
    half its length: pass `length / 2` for that. Training is three times the
    forward pass (Kaplan et al. 2001.08361, section 2.1).
    """
    length = self.max_length if length is None else length
    if self.window is not None:
      length = min(length, self.window)
    d, h = self.d_model, self.head_dim
    kernels = self.num_layers * (
        d * h * (2 * self.num_heads + 2 * self.num_kv_heads)
        + 3 * d * self.d_mlp
    ) + d * self.padded_vocab + (d if self.scalar_head else 0)
    attention = self.num_layers * 2 * self.num_heads * h * length
    return 2.0 * (kernels + attention) * (3 if training else 1)

  def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
    """Bytes that one token adds to the key/value cache."""
    return (2 * self.num_layers * self.num_kv_heads * self.head_dim
            * bytes_per_value)
