"""Data: records from files, documents and synthetic facts; no torch at import time.

rows.py               Question, Record, and readers of a row's fields
instruction_sets.py   which fields of which data set make a record
converters.py         converters by name and by hub id; rows of one context or task put together
records.py            records from files of any format
hub.py                records from hub data sets, streamed
paragraphs.py         paragraphs and sentences of plain text
cloze.py              questions made from plain text
facts.py              records of made-up facts; the only module of the facts to import from outside
facts_sampling.py     which facts a record states; what each split holds out
facts_wording.py      how one fact is said and asked
facts_rendering.py    how the facts of a record are arranged to a text
facts_attributes.py   kinds of entities and their attributes, from facts_attributes.json
facts_vocabulary.py   names and values, from facts_vocabulary.json
"""
