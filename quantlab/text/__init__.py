"""Text for a language model: documents, tokenizer, token shards, and the corpus that ships with Python."""
