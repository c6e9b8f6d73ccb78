"""PeRL: permutation-enhanced reinforcement learning for multi-image reasoning (arXiv 2506.14907)."""
