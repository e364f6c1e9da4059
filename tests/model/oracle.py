"""A transformer in plain NumPy, loops and all, written from the papers.

It shares no line with `lm.model`: RMSNorm 1910.07467, RoPE 2104.09864 and its
Llama 3 form 2407.21783, grouped queries 2305.13245, sliding windows 2310.06825,
SwiGLU 2002.05202, QK-norm 2302.05442, soft caps 2408.00118. Float64 throughout.
"""

import math

import numpy as np


def norm(x, scale, eps):
  return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps) * scale


def frequencies(config):
  """The angle by which each pair of dimensions turns in one position."""
  freqs = []
  for pair in range(config.head_dim // 2):
    freq = config.rope_theta ** (-2 * pair / config.head_dim)
    if config.rope_scaling is not None:
      factor, low, high, original = config.rope_scaling
      wavelength = 2 * math.pi / freq
      if wavelength > original / low:
        freq /= factor
      elif wavelength > original / high:
        smooth = (original / wavelength - low) / (high - low)
        freq = (1 - smooth) * freq / factor + smooth * freq
    freqs.append(freq)
  return np.array(freqs)


def rotate(x, position, freqs):
  """Pairs dimension i with i + H/2, turned by position * freqs[i]."""
  half = len(freqs)
  z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * position * freqs)
  return np.concatenate([z.real, z.imag], -1)


def attention(x, layer, config, positions, segments):
  """One example: x [T, D]."""
  length, groups = len(x), config.num_heads // config.num_kv_heads
  freqs = frequencies(config)
  q, k, v = (np.einsum("td,dnh->tnh", x, layer[n]) for n in "qkv")
  if config.qk_norm:
    q = norm(q, layer["q_norm"], config.norm_eps)
    k = norm(k, layer["k_norm"], config.norm_eps)
  q = np.stack([rotate(a, p, freqs) for a, p in zip(q, positions)])
  k = np.stack([rotate(a, p, freqs) for a, p in zip(k, positions)])
  out = np.zeros_like(x)
  for t in range(length):
    seen = [s for s in range(t + 1) if segments[s] == segments[t] != 0
            and (config.window is None or t - s < config.window)]
    if not seen:
      continue
    for head in range(config.num_heads):
      scores = np.array([q[t, head] @ k[s, head // groups] for s in seen])
      scores = np.exp(scores / math.sqrt(config.head_dim) - max(scores))
      mixed = scores / scores.sum() @ v[seen, head // groups]
      out[t] += mixed @ layer["o"][head]
  return out


def logits(config, params, tokens, positions=None, segments=None):
  """tokens [T] -> logits [T, V], without the vocabulary's padding."""
  params = {k: v for k, v in params.items()}
  length = len(tokens)
  positions = range(length) if positions is None else positions
  segments = [1] * length if segments is None else segments
  f64 = lambda x: np.asarray(x, np.float64)
  table = f64(params["embed"]["table"])
  x = table[np.asarray(tokens)]
  blocks = params["layers"]
  for n in range(config.num_layers):
    layer = {k: f64(v[n]) for k, v in blocks["attention"].items()}
    mlp = {k: f64(v[n]) for k, v in blocks["mlp"].items()}
    h = norm(x, f64(blocks["attention_norm"]["scale"][n]), config.norm_eps)
    x = x + attention(h, layer, config, positions, segments)
    h = norm(x, f64(blocks["mlp_norm"]["scale"][n]), config.norm_eps)
    gate = h @ mlp["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ mlp["up"])) @ mlp["down"]
  x = norm(x, f64(params["final_norm"]["scale"]), config.norm_eps)
  kernel = table.T if config.tied else f64(params["head"]["kernel"])
  out = (x @ kernel)[:, :config.vocab_size]
  if config.logit_cap is not None:
    out = config.logit_cap * np.tanh(out / config.logit_cap)
  return out


def values(config, params, tokens):
  """The scalar head [T], by giving the model another output layer."""
  w = np.asarray(params["value"]["value"], np.float64)
  other = config.replace(tied=False, vocab_size=1, logit_cap=None)
  kernel = {**params, "head": {"kernel": w[:, None]}}
  return logits(other, kernel, tokens)[:, 0] + float(params["value"]["bias"])
