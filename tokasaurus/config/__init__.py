"""Options of the engine, and reading a checkpoint's own configuration files."""
