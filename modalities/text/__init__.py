"""Text: a tokenizer, an embedding and a head; the modality whose words the other modalities borrow."""
