"""Weights of others, in and out: Hugging Face, GGUF, the two-file runtime."""
