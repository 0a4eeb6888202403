"""Boards: the programs that run there, and what talks to them."""
