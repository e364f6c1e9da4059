"""Rematerialisation by name: what the backward pass need not compute again."""

import dataclasses

import jax

from lm.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Remat:
  """What is kept of a layer from the forward pass to the backward pass.

  Attributes:
    device: names (of `checkpoint_name`) kept where they are, the layer's input
      always among them.
    host: names kept in the host's memory.
  """

  device: tuple[str, ...] = ()
  host: tuple[str, ...] = ()

  @property
  def policy(self):
    """For `jax.checkpoint`."""
    policies = jax.checkpoint_policies
    if self.host:
      return policies.save_and_offload_only_these_names(
          names_which_can_be_saved=list(self.device),
          names_which_can_be_offloaded=list(self.host),
          offload_src="device", offload_dst="pinned_host")
    return policies.save_only_these_names(*self.device)


_QKV = ("q", "k", "v")
# From all to nothing; "none" is none of `jax.checkpoint`.
REMAT = {
    "none": Remat((*_QKV, "attention", "mlp_gate", "mlp_up", "rest")),
    "save_matmuls": Remat((*_QKV, "mlp_gate", "mlp_up")),
    "save_attention": Remat((*_QKV, "attention")),
    "save_qkv": Remat(_QKV),
    "save_qk": Remat(("q", "k")),
    "full": Remat(),
    "offload": Remat(host=("layer", *_QKV, "attention")),
}


def kept_numbers(name: str, config: ModelConfig) -> int:
  """How many numbers a device keeps of a token and layer, at the least.

  Args:
    name: of `REMAT`.
    config: the model.
  """
  d, f = config.d_model, config.d_mlp
  queries = config.num_heads * config.head_dim
  keys = config.num_kv_heads * config.head_dim
  sizes = {"layer": d, "q": queries, "k": keys, "v": keys,
           "attention": queries, "mlp_gate": f, "mlp_up": f, "rest": 2 * d + f}
  kept = set(REMAT[name].device) | {"layer"} - set(REMAT[name].host)
  return sum(sizes[name] for name in kept)
