"""A search page and its JSON on this machine: a question in any language, with and without the augmentation.

`finding` answers questions, `search_page` makes the page, `app` speaks HTTP and keeps strangers out.
"""
