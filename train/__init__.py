"""Job 2: shards to model bundle. `python -m train CONFIG [key.path=value ...]`."""
