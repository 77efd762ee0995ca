"""The demo: upload a file, watch its progress live, from this instance or any other.

Start it with ``python -m fanwire demo``. It needs the extra ``fanwire[demo]``, so this package
imports nothing until asked. Read ``app.py`` first: it is the wiring that an application copies.
"""
