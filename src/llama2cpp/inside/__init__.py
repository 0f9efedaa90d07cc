"""Looking inside a model and changing what it computes: activations, weights, hooks and what is made of them."""
