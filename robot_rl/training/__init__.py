"""Replay, actors, the training loop, evaluation, checkpoints."""
