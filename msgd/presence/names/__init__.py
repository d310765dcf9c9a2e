"""Names: how a process is found by what it does instead of by its pid."""
