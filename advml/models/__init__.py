"""Networks: each serves any spec it can, says why it cannot serve another, and knows no method."""
