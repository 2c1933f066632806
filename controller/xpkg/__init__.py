"""The room of a package's bytes: building, archiving and locating package.yaml."""
