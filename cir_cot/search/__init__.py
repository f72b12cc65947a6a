"""Search a gallery: encode it once, index its vectors, answer queries."""
