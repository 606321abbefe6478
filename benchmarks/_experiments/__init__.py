"""What the experiments have in common: traffic, what is kept of a run, what one answers."""
