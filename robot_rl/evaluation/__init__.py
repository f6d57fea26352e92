"""Evaluation by trials: what recorded episodes say of a policy, and the page that shows it."""
