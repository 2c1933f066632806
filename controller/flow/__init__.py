"""The room whose peer is the event loop: queues, workers and the status committer."""
