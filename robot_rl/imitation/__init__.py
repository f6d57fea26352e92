"""Learning from recorded data."""
