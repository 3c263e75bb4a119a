"""Write the questions that speakers of other languages would ask about a passage."""
