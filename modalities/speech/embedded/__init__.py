"""A small pack of spoken digits, made for this project with espeak-ng: `digits.ogg` and `digits.json`."""
