"""`cmt bench`: systems beside one another, in turns, under the same requests."""
