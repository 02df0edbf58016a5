"""Who may use the server, from where, and what is noted about each request."""
