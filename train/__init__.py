"""Training recipes; in a checkout `train/`, once installed `cir_cot.scripts.train`."""
