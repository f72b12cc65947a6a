"""Evaluate a retriever on a benchmark: encode, rank, score, and report."""
