"""The whole loop in one command, and its report."""
