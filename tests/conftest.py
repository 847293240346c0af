"""Shared by all tests. Nothing here starts anything."""
