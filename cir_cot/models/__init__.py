"""Load pretrained models safely, each kind behind one wrapper, and build tiny ones."""
