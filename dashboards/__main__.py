"""Write the dashboards."""

from __future__ import annotations

from dashboards import FOLDER, files

FOLDER.mkdir(exist_ok=True)
for path, text in files().items():
    path.write_text(text)
    print(path)
