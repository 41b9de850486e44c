"""What watches training: logs, progress, heat maps, the collapse alarm, averaged weights, the last checkpoint."""
