"""What each verb of the command `zoo` takes and does, by subject. Heavy imports stand inside the functions."""
