"""What the agent shows of itself: health, metrics, state, and the health ports of load-balanced Services."""
