"""NeverEnding storage: episodes on disk, their columns, index and queries."""
