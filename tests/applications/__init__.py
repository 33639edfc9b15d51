"""Programs as people use them, at the size people use them: on a real mount, in both durability settings,
and what they left compared after an unmount and a mount with an empty cache."""
