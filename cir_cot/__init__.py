"""Chain-of-thought composed image retrieval with Qwen-VL models: records, benchmarks, heads, training, evaluation."""

__version__ = "0.1.0"
