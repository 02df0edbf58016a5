"""What the engine says about itself: logs and metrics."""
