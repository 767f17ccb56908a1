"""`python -m documentation`: writes the pages of the documentation that are stored."""

from pathlib import Path

from documentation.settings_page import settings_page

SETTINGS_PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
