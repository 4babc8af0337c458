"""Who has which board until when."""
