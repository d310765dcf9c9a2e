"""What the daemon and the tools share."""
