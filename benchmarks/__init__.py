"""Measurements against what a user could pick instead; not part of the distribution."""
