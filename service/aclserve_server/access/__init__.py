"""Who may do what: principals, their groups and quotas, and the file that names them. Knows neither gRPC nor engine."""
