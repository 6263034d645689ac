"""Retrieval: an index of embedded images in one file, search in it, and images that are none of it."""
