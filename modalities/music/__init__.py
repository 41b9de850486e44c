"""Music: four-voice notes per sixteenth, or codec frames, in and out."""
