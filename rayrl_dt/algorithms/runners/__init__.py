"""Env runners: collecting whole episodes in parallel, and what is done when one hangs or is lost."""
