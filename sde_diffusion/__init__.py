"""Score-based generative models through stochastic differential equations."""
