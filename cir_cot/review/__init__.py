"""Review chains in a browser: accept, edit, reject, ask again."""
