"""NVIDIA cards: what is declared, what is seen, what must be done about the difference."""
