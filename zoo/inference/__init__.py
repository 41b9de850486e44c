"""Models in use: conversations on top of generation."""
