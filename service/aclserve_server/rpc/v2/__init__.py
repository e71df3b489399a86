"""The KServe v2 protocol with the extensions of Triton, as a second skin over the engine: its servicer and its codec."""
