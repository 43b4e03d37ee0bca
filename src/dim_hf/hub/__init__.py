"""What goes to the Hub: the model card and the push."""
