"""What the pages of report and gate share: numbers, pictures, template and style; no page of its own."""
