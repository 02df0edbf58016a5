"""Tokasaurus from Python: LLM (no server), serve (a server), client (an OpenAI client)."""
