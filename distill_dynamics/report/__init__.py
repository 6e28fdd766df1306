"""From saved Profiles to what a person looks at: figures, tables, HTML."""
