"""The transfer methods, one file each: what is reset, at which rate it learns, what pulls it."""
