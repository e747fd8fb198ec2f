"""Policies as a service over HTTP, with Ray Serve."""
