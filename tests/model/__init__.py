"""Tests of controller.model."""
