"""What one would use instead of msgd, doing the same ping: one module each, imported by whoever measures it."""
