"""The room of decisions: each stage reads stores, decides and writes through its arguments."""
