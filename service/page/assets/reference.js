"use strict";

// Swagger UI over this server's own document. Its validator of specifications is another site: it is not asked.
window.addEventListener("load", () => {
  const place = document.getElementById("reference");
  SwaggerUIBundle({ url: place.dataset.document, domNode: place, deepLinking: true, validatorUrl: null });
});
