"""Other people's checkpoints, a module for each library: read, named anew, written."""
