"""Faults that watches survive, on the lab's real API server."""
