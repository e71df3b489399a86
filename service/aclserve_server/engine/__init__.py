"""What the service does: models, batches, memory. Knows neither gRPC nor protobuf."""
