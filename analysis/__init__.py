"""What is measured on checkpoints and trajectories."""
