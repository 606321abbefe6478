"""A simulated engine with a real prefix cache, the local stack and the demo that runs on it."""
