"""The gateway: clients that have no endpoint of their own, each with a connection process."""
