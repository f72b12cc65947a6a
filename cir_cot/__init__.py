"""Composed image retrieval with chains of thought."""

__version__ = "0.1.0"
