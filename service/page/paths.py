"""Which paths are pages, and which of them nobody needs a key for."""

SEGMENTS = ("explorer", "plans", "jobs", "compare", "devices", "login", "logout", "assets")
"""First segments of the paths of pages, beside "/" itself."""
LOGIN = "/login"
ASSETS = "/assets/"


def is_page(path: str) -> bool:
    """Whether a path of the service is a page, and not of the API."""
    return path == "/" or path.split("/")[1:2] in ([segment] for segment in SEGMENTS)


def is_open(path: str) -> bool:
    """Whether a page is for everybody: what it takes to log in and out."""
    return path in (LOGIN, "/logout") or path.startswith(ASSETS)
