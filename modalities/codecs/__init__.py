"""Codecs: sound to a few discrete codes per frame, and back."""
