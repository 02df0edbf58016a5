"""Anthropic's messages API over the same chats as OpenAI's."""
