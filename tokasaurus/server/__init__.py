"""The front end: OpenAI's API over HTTP, and the engine client that the Python API shares."""
