"""What Prometheus is told: how runs go, and how far each model is. docs/monitoring.md lists it."""
