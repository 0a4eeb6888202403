"""Passes that set weights to zero and repair what that broke."""
