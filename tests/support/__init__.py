"""Helpers that several test files use, in one module for each topic.

A test file imports helpers from here and never from another test file.
"""
