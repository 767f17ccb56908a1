"""The HTTP service: `service.app.create_app(settings)` is the application, `service.server.serve(settings)` runs it."""
