"""Small GGUF models here and in Hugging Face's transformers, where installed.

They come with the extra `bench`. Scaled rotary frequencies are not compared:
transformers does not read them from GGUF.
"""

import jax
import numpy as np
import pytest

from lm.interop.gguf import open_gguf
from lm.model import LanguageModel
from tests.interop import gguf_files
from tests.model import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # Wants it for GGUF.


@pytest.mark.parametrize("case", gguf_files.ARCHITECTURES)
def test_logits_of_the_same_file(case, tmp_path):
  # It takes every Qwen3's heads to be 128 wide, whatever the file says.
  changes = dict(head_dim=128) if case == "qwen3" else {}
  arch, config, params = gguf_files.model(case, **changes)
  gguf_files.write(tmp_path / "m.gguf", arch, config,
                   gguf_files.tensors(arch, config, params))
  found = open_gguf(tmp_path / "m.gguf")
  peer = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path, gguf_file="m.gguf", dtype=torch.float32,
      attn_implementation="eager").eval()
  tokens = tiny.tokens(config, 2, 24)
  with torch.no_grad():
    want = peer(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  net = LanguageModel(found.config.replace(dtype="float32"))
  got = np.asarray(jax.jit(net.forward)(found.params(), tokens).logits_BTV)
  np.testing.assert_allclose(
      got[..., :config.vocab_size], want, atol=1e-4, rtol=1e-4)
