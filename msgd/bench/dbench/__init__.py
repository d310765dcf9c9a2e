"""msgbench dbench: the overall benchmark, file operations with the messages that a file server sends for them."""
