"""The parts of demo-model training: corpus, transcripts, tokenizer, optimiser, loop and card."""
