"""The whole life of a language model, from raw text to deliberate search."""

__version__ = "0.1.0"
