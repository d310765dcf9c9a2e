"""The transports: one module each, loaded by name through the registry that configure.py generates."""
