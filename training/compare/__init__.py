"""Fair comparison of systems: equal text in equal order, equal active operations, a resumable table."""
