"""Memoryless baselines: IQL, CQL and TD3+BC, and the SAC that makes data."""
