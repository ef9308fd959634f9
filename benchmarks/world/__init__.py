"""Programs whose times others have published, rebuilt in plain JAX to be predicted."""
