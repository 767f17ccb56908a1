"""The routers of all pages."""

from service.page.views import assets, compare, devices, explorer, jobs, login, models, plan, reference

VIEWS = tuple(view.router for view in (models, explorer, plan, jobs, compare, devices, login, assets, reference))
