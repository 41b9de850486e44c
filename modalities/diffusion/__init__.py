"""Images as output: generated from noise by flow matching or DDPM, conditioned on a class or on text."""
