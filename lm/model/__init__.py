"""The model: configs, sizes, the transformer and its cache."""

from lm.model.cache import Cache, empty as empty_cache, fork as fork_cache
from lm.model.config import ModelConfig
from lm.model.numerals import init_with_digits
from lm.model.sizes import SIZES, depth, recipe, size
from lm.model.remat import REMAT
from lm.model.transformer import LanguageModel

__all__ = [
    "REMAT", "SIZES", "Cache", "LanguageModel", "ModelConfig", "depth",
    "empty_cache", "fork_cache", "init_with_digits", "recipe", "size",
]
