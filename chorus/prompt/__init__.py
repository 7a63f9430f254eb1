"""Text to vectors that can be matched, and the tokens in which two prompts differ."""
