"""Tests of queues, workers and the status committer, in virtual time."""
