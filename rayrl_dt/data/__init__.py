"""Logged data: reading it, holding it as flat arrays, and cutting training windows out of it."""
