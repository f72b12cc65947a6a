"""Use a retriever from other libraries: sentence-transformers, mteb, serving engines."""
