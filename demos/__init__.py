"""Figures and the web page that show the models at work."""
