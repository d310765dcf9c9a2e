"""Bytes to objects and back, and nothing else: no socket, no file, no clock.

Every format msgd speaks is written down here, each in the module that packs and unpacks it.
"""
