"""The commands, as installed: `train`, `eval` and `data_gen` of a checkout become sub-packages of this one."""
