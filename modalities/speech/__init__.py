"""Speech: recordings to text, and text to recordings."""
