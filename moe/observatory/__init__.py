"""What routers do while a model trains: figures, alerts, and churn between checkpoints."""
