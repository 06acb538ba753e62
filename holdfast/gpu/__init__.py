"""NVIDIA cards: the declared and the actual ones, and what to do about differences."""
