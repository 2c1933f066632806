"""Tests of controller.xpkg."""
