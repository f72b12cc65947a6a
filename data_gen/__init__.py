"""Scripts that make and check data; in a checkout `data_gen/`, once installed `cir_cot.scripts.data_gen`."""
