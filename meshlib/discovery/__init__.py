"""Facts in: Kubernetes, DNS, files, static text. Each publishes the same Update."""
