"""What the pages of report and gate share: numbers, pictures, template, style, how they are put; no page of its own."""
