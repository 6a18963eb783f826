"""Models: read checkpoints, tell matrices from other tensors, and build the model that runs them."""
