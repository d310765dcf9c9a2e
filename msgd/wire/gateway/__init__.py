"""What the gateway and its clients say to each other: JSON objects, one a line."""
