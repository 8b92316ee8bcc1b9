"""Draws and serves a small catalogue, and runs the real pipeline on it; `run.run` does it all."""
