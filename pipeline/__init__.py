"""One FLAIR series to its findings: select, strip, preprocess, segment, measure. No sockets."""
