"""What takes servers of its own: databases, brokers, clusters, object stores. Not part of CI."""
