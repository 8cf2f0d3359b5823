"""Data: records from files, documents and synthetic facts; no torch at import time.

records.py            Question, Record and the readers of files
facts.py              records of made-up facts; the only module of the facts to import from outside
facts_sampling.py     which facts a record states; what each split holds out
facts_wording.py      how one fact is said and asked
facts_rendering.py    how the facts of a record are arranged to a text
facts_attributes.py   kinds of entities and their attributes, from facts_attributes.json
facts_vocabulary.py   names and values, from facts_vocabulary.json
"""
