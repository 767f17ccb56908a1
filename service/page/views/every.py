"""The routers of all pages."""

from service.page.views import assets, compare, devices, explorer, jobs, login, models, reference

VIEWS = tuple(view.router for view in (models, explorer, jobs, compare, devices, login, assets, reference))
