"""Tasks: which contexts there are, what is asked about them and what counts as right; no torch at import time.

protocol.py             TaskSample, Task, and the one function that judges answers
reading.py              JSON rows with their places, for errors
document_qa.py          questions about groups of documents: SQuAD and StreamingQA files
document_groups.py      documents to groups of k tokens, questions to groups
metaicl.py              demonstrations and test rows of MetaICL
personalisation.py      questions about conversations: Multi-Session Chat and LoCoMo
persona_questions.py    questions made from persona facts, by the rules of persona_rules.py
"""
