"""SmolLM2-135M-Instruct as GGUF: here, and in Hugging Face's transformers.

They come with the extra `bench`; the model by `lm fetch smollm2`.
"""

import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from lm import decode, masked, paths
from lm.interop.gguf import open_gguf
from lm.model import LanguageModel

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # Wants it for GGUF.

pytestmark = pytest.mark.slow
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SLOTS = 160  # All texts are compiled as one length.

TEXTS = (
    # Code.
    "def merge(a, b):\n    out = []\n    i = j = 0\n    while i < len(a) and"
    " j < len(b):\n        if a[i] <= b[j]:\n            out.append(a[i]); i"
    " += 1\n        else:\n            out.append(b[j]); j += 1\n    return out"
    " + a[i:] + b[j:]\n",
    "#include <stdio.h>\n\nint main(void) {\n\tfor (int i = 0; i < 10; ++i)"
    " {\n\t\tprintf(\"%d squared is %d\\n\", i, i * i);\n\t}\n\treturn 0;\n}\n",
    "SELECT u.name, COUNT(*) AS orders, SUM(o.total) FROM users u LEFT JOIN"
    " orders o ON o.user_id = u.id WHERE u.created_at >= '2021-03-01' GROUP BY"
    " u.name HAVING COUNT(*) > 3 ORDER BY 3 DESC LIMIT 25;",
    "<html>\n  <body class=\"dark\">\n    <p>Nothing to see &mdash; move"
    " on.</p>\n    <!-- TODO: footer -->\n  </body>\n</html>\n",
    "fn fib(n: u64) -> u64 { match n { 0 | 1 => n, _ => fib(n - 1) + fib(n - 2)"
    " } }\n\n#[test]\nfn ten() { assert_eq!(fib(10), 55); }\n",
    "{\"id\": 17, \"tags\": [\"a\", \"b\"], \"price\": 12.50, \"nested\":"
    " {\"ok\": true, \"none\": null}, \"date\": \"1999-12-31T23:59:59Z\"}",
    # Prose.
    "The lighthouse had been dark for eleven years when the keeper's daughter"
    " came back to the island. She carried one suitcase, a box of her father's"
    " letters, and a key that no longer fitted any door.",
    "Photosynthesis turns light into chemical energy: in the leaves of green"
    " plants, carbon dioxide and water become sugar, and oxygen is released as"
    " a by-product of the reaction.",
    "\"You can't mean that,\" she said. \"I can,\" he answered, \"and I do.\""
    " Neither of them moved; outside, the rain -- which hadn't stopped since"
    " Tuesday -- went on falling.",
    "To bake bread you need 500 g of flour, 350 ml of water, 10 g of salt and 7"
    " g of yeast. Mix, wait 90 minutes, fold twice, and bake at 230 degrees for"
    " about 40 minutes.",
    "In 1687 Isaac Newton published three laws of motion. The second says that"
    " force equals mass times acceleration, F = ma, so that 3 kg pushed with 12"
    " N gain 4 m/s every second.",
    "Once upon a time there was a small dragon who was afraid of fire.   Every"
    " morning it drank\n\n\ncold tea,    and every evening it hid under the"
    " bridge of the old town.",
    "shall i compare thee to a summers day THOU ART MORE LOVELY AND MORE"
    " TEMPERATE rough winds do shake the darling buds of may",
    # Other scripts.
    "Съешь же ещё этих мягких французских булок, да выпей чаю. В чащах юга жил"
    " бы цитрус?",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ。東京は日本の首都です。",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. नमस्ते दुनिया, आप कैसे हैं?",
    "مرحبا بالعالم، كيف حالك اليوم؟ שלום עולם, מה שלומך?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Dès Noël,"
    " où un zéphyr haï me vêt de glaçons würmiens, je dîne d'exquis rôtis.",
    # Emoji and signs.
    "🙂🚀 Launch at 10:00! 👩‍👩‍👧‍👦 + 🇳🇴 = ❤️‍🔥 … ½ × π ≈ 1.5708 →"
    " ∞ “quotes” ‘too’ €5 £6 ¥7 №8 ™ ☃ 👍🏽",
)
PROMPTS = ("Once upon a time in a village by the sea,",
           "The history of the Roman Empire begins with")


@pytest.fixture(scope="module", name="path")
def _path():
  found = paths.cache_folder() / "models" / "smollm2" / NAME
  if not found.is_file():
    pytest.skip(f"{found} is not there: run `lm fetch smollm2`")
  return found


@pytest.fixture(scope="module", name="ours")
def _ours(path):
  """Our model in float32, its parameters and its vocabulary."""
  found = open_gguf(path)
  return (LanguageModel(found.config.replace(dtype="float32")),
          found.params(), found.vocab)


@pytest.fixture(scope="module", name="peer")
def _peer(path):
  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # On a busy machine they wait for each other.
  yield transformers.AutoModelForCausalLM.from_pretrained(
      path.parent, gguf_file=path.name, dtype=torch.float32).eval()
  torch.set_num_threads(threads)


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer(path):
  found = transformers.AutoTokenizer.from_pretrained(
      path.parent, gguf_file=path.name)
  # It does not read `tokenizer.ggml.pre`, which says that digits stand alone
  # (signs like ½ too): what the model's own tokenizer.json has.
  split = tokenizers.pre_tokenizers
  found.backend_tokenizer.pre_tokenizer = split.Sequence([
      split.Digits(individual_digits=True),
      split.ByteLevel(add_prefix_space=False)])
  return found


@jax.jit
def _log_probs(logits_TV, ids_T):
  log_probs, _ = masked.token_log_probs(logits_TV[None, :-1], ids_T[None, 1:])
  return log_probs[0]


def peer_logits(peer, ids):
  with torch.no_grad():
    return peer(torch.tensor([ids])).logits[0].numpy()


def test_token_ids(ours, tokenizer):
  _, _, vocab = ours
  assert vocab.size == len(tokenizer) == 49_152
  for text in TEXTS:
    ids = vocab.encode(text)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert vocab.decode(ids) == text


def test_logits(ours, peer):
  model, params, vocab = ours
  forward = jax.jit(model.forward)
  rows = [vocab.encode(text) for text in TEXTS]
  assert len(rows) == 20 and sum(map(len, rows)) >= 1000
  worst = 0.0
  for ids in rows:
    padded = np.zeros((1, SLOTS), np.int32)
    padded[0, :len(ids)] = ids
    segments = (np.arange(SLOTS) < len(ids)).astype(np.int32)[None]
    got = np.asarray(forward(
        params, padded, segments_BT=segments).logits_BTV)[0, :len(ids)]
    worst = max(worst, np.abs(got - peer_logits(peer, ids)).max())
  print(f"{sum(map(len, rows))} tokens: logits differ by at most {worst:.2g}")
  assert worst < 1e-3


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_greedy_text(prompt, ours, peer):
  model, params, vocab = ours
  ids = vocab.encode(prompt)
  state = decode.generate(
      model, params, [ids], max_tokens=200, eos_id=vocab.eos_ids,
      key=jax.random.key(0), rules=decode.rules(temperature=0.0))
  got = np.asarray(state.tokens_BM)[0, :int(state.num_B[0])].tolist()
  with torch.no_grad():
    want = peer.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=200,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        eos_token_id=list(vocab.eos_ids),
        pad_token_id=vocab.eos_id)[0, len(ids):].tolist()
  assert len(got) == 200  # Both go on to the end of what they may say.
  assert vocab.decode(got) == vocab.decode(want)
  assert got == want


def test_perplexity(ours, peer):
  model, params, vocab = ours
  ids = vocab.encode(statistics.__doc__)[:1024]
  assert len(ids) > 500
  logits = jax.jit(model.forward)(params, np.array([ids])).logits_BTV[0]
  got = math.exp(-float(jnp.mean(_log_probs(logits, np.array(ids)))))
  with torch.no_grad():
    want = math.exp(peer(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
  print(f"{len(ids)} tokens: perplexity {got:.6f} here, {want:.6f} there")
  assert abs(got / want - 1) < 5e-5  # Four digits.
