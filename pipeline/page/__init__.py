"""What the pages of report and gate share: numbers, pictures, template and style."""
