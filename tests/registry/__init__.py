"""Tests of the room whose peers are OCI registries and the package cache on disk."""
