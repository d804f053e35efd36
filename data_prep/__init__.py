"""Job 1: raw archives -> archive -> shards, and simulated observations."""
