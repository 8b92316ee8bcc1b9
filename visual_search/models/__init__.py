"""What a model is: its spec and identity, its weights, its network."""
