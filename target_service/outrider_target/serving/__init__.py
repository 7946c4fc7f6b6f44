"""The wire's side: the gRPC service, its messages, text in and out, metrics."""
