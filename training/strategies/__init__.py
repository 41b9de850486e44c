"""What Lightning's strategies need to know of the model."""
