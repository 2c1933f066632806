"""Stand-ins for what a test cannot wait for or provoke: time, and peers that misbehave."""
