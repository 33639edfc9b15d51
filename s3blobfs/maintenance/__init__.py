"""Finding damage and mending it: fsck, scrub and gc, of a mounted volume and of one that is not."""
