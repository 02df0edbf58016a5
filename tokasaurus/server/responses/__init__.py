"""OpenAI's responses API: one turn after another, remembered by the server."""
