"""Install Detectron2, with nothing but the standard library and pip.

- edits: the archive that is downloaded, and the table of what is changed in it
- added_missing: the one file that is added to it (data here, never imported)
- probe: what this Python can import already
- pip_process: running pip, and its failures in one line
- download, source, wheel, install: the steps, each from the folder or file that the last one left
- command: the options and the order of the steps
"""
