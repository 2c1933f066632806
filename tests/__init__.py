"""Tests of crossdock, room by room, on a real control plane and a real registry."""
