"""Balance: losses and bias updates that keep experts in use."""
