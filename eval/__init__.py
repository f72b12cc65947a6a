"""Evaluation scripts; in a checkout `eval/`, once installed `cir_cot.scripts.eval`."""
