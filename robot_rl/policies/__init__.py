"""Algorithms in torch: networks, losses, learners, export."""
