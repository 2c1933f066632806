"""Tests of controller.stages."""
