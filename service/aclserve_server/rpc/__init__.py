"""The gRPC face of the engine: convert, call, convert."""
