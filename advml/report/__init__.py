"""Tables and pictures made from run folders. Prints nothing: commands do."""
