"""Write the questions that speakers of other languages would ask of a passage."""
