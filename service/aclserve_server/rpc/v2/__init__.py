"""The KServe v2 protocol with the extensions of Triton, a second skin over the engine: servicer and codec."""
