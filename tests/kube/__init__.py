"""Tests of the room whose peer is the API server."""
