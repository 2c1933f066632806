"""The room of people at a terminal: one file a verb, no logic that a stage needs."""
