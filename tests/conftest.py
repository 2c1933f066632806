"""Fixtures for all tests."""

pytest_plugins = ["tests.lab.plugin", "tests.kube.faults.table"]
