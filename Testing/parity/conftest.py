"""Only tests are collected here: the other files need the reference to be imported."""

collect_ignore = ["record.py", "record_imagenet.py", "reference.py", "table.py"]
