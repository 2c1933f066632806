"""Tests of what ``manifests/`` ships, and the generator of its CustomResourceDefinitions."""
