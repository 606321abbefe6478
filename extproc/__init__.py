"""Homing: sends each turn of an LLM conversation to the instance that holds its KV cache."""

__version__ = "0.1.0"
