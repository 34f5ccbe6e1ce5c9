"""Architecture search: DARTS, ENAS, and searches by training, by shared weights or by table."""
