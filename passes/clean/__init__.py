"""Passes that keep every answer and leave less to compute."""
