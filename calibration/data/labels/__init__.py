"""Labels that are more than a number: pairs, masks and boxes, as arrays with a row for each sample; no samples."""
