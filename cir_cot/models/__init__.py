"""Pretrained models behind one wrapper each, and what a checkpoint needs to be loaded."""
