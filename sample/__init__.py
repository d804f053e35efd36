"""Job 3: bundle + observations -> posterior ensemble -> scores."""
