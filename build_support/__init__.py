"""What configure.py, `make install` and `pip install` are made of. Standard library only; msgd is never imported."""
