"""What the engine says about itself: logs."""
