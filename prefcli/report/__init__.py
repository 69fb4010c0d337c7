"""Pages and pictures, made of plain dicts: nothing here knows a model, a row or a trainer."""
