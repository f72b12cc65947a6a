"""Name content by a 128-bit digest, so that a stored copy can be found and checked.

Caches, galleries and index files all use these two functions: an entry is found by the digest of the content it was
computed from, and a file is checked against the digest that was written down with it.
"""

import hashlib
from pathlib import Path

DIGEST_BYTES = 16


def digest_bytes(content: bytes) -> str:
    """Return the digest of bytes as 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file's bytes, read in blocks; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest()


def new_digest() -> "hashlib.blake2b":
    """Return an empty digest to update piece by piece."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)
