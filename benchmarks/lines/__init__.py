"""A network of its own: server and client in network namespaces, and lines that are slow."""
